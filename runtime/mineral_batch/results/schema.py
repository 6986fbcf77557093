r"""The tables that a run leaves, schema version 1: files, columns and formats. Each appears whole or not at all.

| file | content |
|---|---|
| predictions.csv | a row per predicted image: `path`, `minerals`, the extra columns chosen, then one column per label |
| failures.csv | a row per image without a prediction: `path`, `stage`, `reason`; exists only if there is one |
| predictions.jsonl | an object per image, failures included, in the order of the files |
| predictions.parquet | as predictions.csv, `minerals` being a list |
| predictions.excel.csv | `--format csv-excel`: the same with semicolons, a byte order mark, CRLF |
| per-image/ | a CSV per predicted image in a copy of the tree: `mineral`, `probability`, `present` (0 or 1) |
| predictions.partial.csv | what an interrupted run has so far, as predictions.csv |
| specimens.csv | `--specimen`: a row per specimen: `specimen`, `images`, `minerals`, `answer`, `best`, labels |
| run.json | how a complete run was made (`mineral_batch.results.manifest`); written last |
| written.json | what else was written about the run (`mineral_batch.results.written`) |

| column | meaning |
|---|---|
| path | the file as `mineral_batch.images.discover` names it, or `ARCHIVE/MEMBER`; unique within a table |
| minerals | the labels at or above their thresholds, most probable first, joined with `;` |
| answer | `--level`: the minerals, then a species, group or class where only its labels together are sure |
| width, height | `size`: pixels of the upright image |
| captured | `captured`: ISO 8601, empty where the EXIF data do not say |
| latitude, longitude | `gps`: decimal degrees, north and east positive, empty where the EXIF data do not say |
| best, second | `best`: the two most probable labels, whatever their thresholds |
| margin | `best`: the probability of the first less that of the second |
| calibrated | `best`: `yes` if the model is calibrated, so that a probability says how often it is right, else `no` |
| familiarity | `familiarity`: share of the training images that look stranger, 0..1; below 0.05 it looks like none |
| specimen | what its images have in common by `--specimen`; the path of an image of which it says nothing |
| images | of the specimen that have a prediction |
| damaged | `damaged`: why only a part of the image could be decoded (`--damaged predict`); empty of a whole image |
| one per label | its probability, 0..1; seven significant digits as text, float32 in Parquet |
| stage | `read` (the file), `decode` (its content) or `infer` (the model's output) |
| reason | one line |

Text is UTF-8. A file name that is not keeps its bytes in the CSVs, is escaped (`\udcXX`) in the JSON and shown as
`\xXX` in Parquet. A relative name that a spreadsheet would run as a formula begins with `./`.
"""

from __future__ import annotations

SCHEMA_VERSION = 1

PREDICTIONS = "predictions.csv"
FAILURES = "failures.csv"
PARTIAL = "predictions.partial.csv"
JSON_LINES = "predictions.jsonl"
PARQUET = "predictions.parquet"
CSV_EXCEL = "predictions.excel.csv"
PER_IMAGE = "per-image"
SPECIMENS = "specimens.csv"
RUN_MANIFEST = "run.json"
#: Which files other commands wrote about the run, wherever they are, and the SHA-256 of each.
RECORD = "written.json"

#: What `Tables.formats` may hold, and the file of each.
FORMATS = {"csv": PREDICTIONS, "jsonl": JSON_LINES, "parquet": PARQUET, "csv-excel": CSV_EXCEL}
#: Added where damaged images are predicted, too.
DAMAGED_COLUMN = "damaged"
#: The most probable label, and the group of columns that it is in.
BEST = "best"
#: What `Tables.columns` may hold, and the columns of each.
COLUMNS = {
    "size": ("width", "height"),
    "captured": ("captured",),
    "gps": ("latitude", "longitude"),
    BEST: (BEST, "second", "margin", "calibrated"),
    "familiarity": ("familiarity",),
    DAMAGED_COLUMN: (DAMAGED_COLUMN,),
}
#: The column of the answers at a broader level.
ANSWER = "answer"
#: The extra columns that specimens.csv has, too, where they are asked for.
SPECIMEN_EXTRA = (ANSWER, *COLUMNS[BEST])
#: The columns in front of the labels, the extra ones included.
LEADING = ("path", "minerals", ANSWER, *(name for names in COLUMNS.values() for name in names))
FAILURE_COLUMNS = ("path", "stage", "reason")
#: Of specimens.csv, before the labels.
SPECIMEN_COLUMNS = ("specimen", "images", "minerals")
#: The stages at which an image can fail.
STAGES = ("read", "decode", "infer")
#: Between the minerals of one cell.
SEPARATOR = ";"


def format_number(value: float) -> str:
    """Return a probability as the tables write it: seven significant digits identify a float32."""
    return f"{value:.7g}"
