#!/bin/bash
# Sixteen tasks share a run, and one job writes the tables when all have ended:
#   job=$(sbatch --parsable runtime/examples/slurm.sh PHOTOS OUTPUT)
#   sbatch --dependency=afterok:$job --wrap "mineral-batch merge OUTPUT --exit-zero-on-failures"
# mineral-batch must be on PATH: activate its environment before sbatch, or name its path below.
#SBATCH --job-name=mineral-batch
#SBATCH --array=0-15
#SBATCH --cpus-per-task=16
#SBATCH --gres=gpu:1
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail
photos=${1:?name the folder or URL of the photographs}
output=${2:?name a folder that all nodes see, or a URL}
# A task that is sent again alone (sbatch --array=5) is still the sixth of sixteen.
exec mineral-batch predict "$photos" -o "$output" --shard auto/16 --exit-zero-on-failures --log-format json
