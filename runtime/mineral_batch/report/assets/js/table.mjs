// The images of a run with their probabilities: what the page's data say, without the page.

/**
 * @typedef {object} Frame
 * @property {string[]} labels
 * @property {number[]} thresholds
 * @property {number[]} low below this probability a label is not near its threshold
 * @property {number[]} high above this, neither
 * @property {number} count images with a prediction
 * @property {[name: string, level: string, labels: number[]][]} broader species, groups and classes of the labels
 * @property {string[][]} names what each label is called, folded: its own name, in other languages, what is broader
 * @property {[name: string, answer: string][]} specimens
 * @property {string} origin link to where relative paths start
 * @property {[path: string, stage: string, reason: string][]} failures
 * @property {[item: number, label: number][]} [alarms] the worst of what is found and not labeled
 * @property {[item: number, label: number][]} [misses] the worst of what is labeled and not found
 */

/**
 * @typedef {object} Rows a page of the data
 * @property {string[]} paths
 * @property {string} scores base64 of little-endian uint16, a row of labels per image; 65535 is 1
 * @property {number[][]} found labels at or above their thresholds, the most probable first
 * @property {string[] | null} captured
 * @property {(number[] | null)[] | null} truth
 * @property {number[]} unfamiliar images, counted from the first of the page, that are unlike the training images
 * @property {Record<string, number[]>} answers image -> indices of the broader names that are sure where no label is
 * @property {number[]} implausible images, counted from the first of the page, with minerals that hardly occur together
 * @property {number[]} specimen of each image; empty without specimens
 * @property {Record<string, string>} damaged image, counted from the first of the page -> why only a part was decoded
 * @property {number[]} [thumbnails] 1 for each image that has a file; in a report that is a folder
 * @property {Record<string, number[]>} [maps] image -> labels that have a map; in a report that is a folder
 */

const FULL_SCALE = 65535;

/** @param {number} probability */
export function percent(probability) {
  return probability > 0 && probability < 0.001 ? "<0.1%" : `${(100 * probability).toFixed(1)}%`;
}

/** @param {number} count */
export function withCommas(count) {
  return count.toLocaleString("en");
}

/** @param {string} text lower case, without accents */
export function folded(text) {
  return text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
}

/** @param {number} p */
function logOdds(p) {
  return Math.log(Math.max(p, 1e-5)) - Math.log(Math.max(1 - p, 1e-5));
}

/**
 * Items are numbers: 0 to count - 1 the images with a prediction, then those that could not be read. Labels are indices,
 * minerals are labels and, from `width` on, the broader names.
 */
export class Table {
  /** @param {Frame} frame */
  constructor(frame) {
    this.frame = frame;
    this.labels = frame.labels;
    this.width = frame.labels.length;
    this.broader = frame.broader ?? [];
    this.specimens = frame.specimens ?? [];
    this.count = frame.count;
    this.size = frame.count + frame.failures.length;
    /** @type {string[]} */
    this.paths = [];
    /** @type {number[][]} */
    this.found = [];
    /** @type {string[]} */
    this.captured = [];
    /** @type {(number[] | null)[]} */
    this.truth = [];
    /** @type {boolean[]} */
    this.hasFile = [];
    /** @type {Set<number>} */
    this.unfamiliar = new Set();
    /** @type {Map<number, string>} */
    this.damaged = new Map();
    /** @type {Map<number, number[]>} */
    this.answers = new Map();
    /** @type {Set<number>} */
    this.implausible = new Set();
    /** @type {number[]} */
    this.specimen = [];
    /** @type {Map<number, number[]>} */
    this.maps = new Map();
    this.scores = new Uint16Array(frame.count * this.width);
    /** @type {Float32Array | null} */
    this.distances = null;
  }

  /** @param {Rows} rows the next page of the data */
  append(rows) {
    const text = atob(rows.scores);
    const bytes = new DataView(new ArrayBuffer(text.length));
    for (let i = 0; i < text.length; i++) bytes.setUint8(i, text.charCodeAt(i));
    const start = this.paths.length;
    for (let i = 0; i < text.length / 2; i++) this.scores[start * this.width + i] = bytes.getUint16(2 * i, true);
    rows.paths.forEach((path, i) => {
      this.paths.push(path);
      this.found.push(rows.found[i]);
      this.captured.push(rows.captured?.[i] ?? "");
      this.truth.push(rows.truth?.[i] ?? null);
      this.hasFile.push(rows.thumbnails?.[i] === 1);
    });
    for (const i of rows.unfamiliar) this.unfamiliar.add(start + i);
    for (const [i, found] of Object.entries(rows.answers ?? {})) this.answers.set(start + Number(i), found);
    for (const i of rows.implausible ?? []) this.implausible.add(start + i);
    this.specimen.push(...(rows.specimen ?? []));
    for (const [i, reason] of Object.entries(rows.damaged ?? {})) this.damaged.set(start + Number(i), reason);
    for (const [i, labels] of Object.entries(rows.maps ?? {})) this.maps.set(start + Number(i), labels);
  }

  /** @param {number} item @param {number} label */
  addMap(item, label) {
    this.maps.set(item, [...this.mapsOf(item), label]);
  }

  /** @param {number} item @returns {number[]} labels that have a map of where the model looks */
  mapsOf(item) {
    return this.maps.get(item) ?? [];
  }

  /** @param {number} item */
  isFailure(item) {
    return item >= this.count;
  }

  /** @param {number} item */
  failure(item) {
    return this.frame.failures[item - this.count];
  }

  /** @param {number} item */
  path(item) {
    return this.isFailure(item) ? this.failure(item)[0] : this.paths[item];
  }

  /** @param {number} mineral */
  nameOf(mineral) {
    return mineral < this.width ? this.labels[mineral] : this.broader[mineral - this.width][0];
  }

  /** @param {number} mineral @returns {string} its value in the page's list */
  keyOf(mineral) {
    return mineral < this.width ? this.labels[mineral] : `${this.broader[mineral - this.width][1]}:${this.nameOf(mineral)}`;
  }

  /** @param {string} key a label, or a broader name with or without its level @returns {number} -1 if there is none */
  mineralOf(key) {
    const label = this.labels.indexOf(key);
    if (label >= 0) return label;
    const at = this.broader.findIndex(([name, level]) => `${level}:${name}` === key || name === key);
    return at < 0 ? -1 : this.width + at;
  }

  /** @param {number} mineral @returns {number[]} */
  labelsOf(mineral) {
    return mineral < this.width ? [mineral] : this.broader[mineral - this.width][2];
  }

  /** @param {number} item @param {number} mineral @returns {number} */
  score(item, mineral) {
    if (mineral < this.width) return this.scores[item * this.width + mineral] / FULL_SCALE;
    // Of any of its labels, as if they were independent.
    return 1 - this.labelsOf(mineral).reduce((rest, label) => rest * (1 - this.score(item, label)), 1);
  }

  /** @param {string} query folded @returns {Set<number>} the labels that are called so, in any language, or belong there */
  called(query) {
    if (query.length < 3) return new Set();
    const names = this.frame.names ?? [];
    return new Set(names.flatMap((several, label) => (several.some((name) => name.startsWith(query)) ? [label] : [])));
  }

  /** @param {number} item @returns {number} the most probable label */
  best(item) {
    let found = 0;
    for (let label = 1; label < this.width; label++) if (this.score(item, label) > this.score(item, found)) found = label;
    return found;
  }

  /** @param {number} item @returns {number[]} all labels, the most probable first */
  ranked(item) {
    return this.labels.map((_, label) => label).sort((a, b) => this.score(item, b) - this.score(item, a));
  }

  /** @param {number} item @returns {number[]} the broader minerals that are its answer where no label is sure */
  answersOf(item) {
    return (this.answers.get(item) ?? []).map((at) => this.width + at);
  }

  /** @param {number} item @param {number} mineral */
  isFound(item, mineral) {
    return this.labelsOf(mineral).some((label) => this.found[item].includes(label)) || this.answersOf(item).includes(mineral);
  }

  /** @param {number} item @param {number} mineral */
  isNear(item, mineral) {
    return this.labelsOf(mineral).some((label) => {
      const score = this.score(item, label);
      return score >= this.frame.low[label] && score <= this.frame.high[label];
    });
  }

  /** @param {number} item @param {number} mineral @returns {boolean} whether it is labeled with it */
  isTrue(item, mineral) {
    return this.labelsOf(mineral).some((label) => this.truth[item]?.includes(label));
  }

  /** @param {number} item @returns {number} how far the nearest label is from its threshold, in log-odds */
  distance(item) {
    if (this.isFailure(item)) return Infinity;
    if (!this.distances) {
      const cuts = this.frame.thresholds.map(logOdds);
      this.distances = new Float32Array(this.count).fill(Infinity);
      for (let i = 0; i < this.count; i++) {
        for (let label = 0; label < this.width; label++) {
          this.distances[i] = Math.min(this.distances[i], Math.abs(logOdds(this.score(i, label)) - cuts[label]));
        }
      }
    }
    return this.distances[item];
  }

  /** @param {number} item @returns {number[]} found, but not labeled; empty without labels */
  wrong(item) {
    const truth = this.truth[item];
    return truth ? this.found[item].filter((label) => !truth.includes(label)) : [];
  }

  /** @param {number} item @returns {number[]} labeled, but not found; empty without labels */
  missed(item) {
    return (this.truth[item] ?? []).filter((label) => !this.isFound(item, label));
  }
}
