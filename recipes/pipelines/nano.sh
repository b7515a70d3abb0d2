#!/usr/bin/env bash
# Rebuilds the bundled model from scratch; takes hours on two CPU cores. Rerun it to resume after an interruption.
#   recipes/pipelines/nano.sh [FOLDER]       writes FOLDER/nano, for `--model FOLDER/nano`
set -euo pipefail
home=${1:-runs/nano}
parts=$home/parts

build() {  # recipe, checkpoint, settings...: resume an interrupted run
    local recipe=$1 checkpoint=$2
    shift 2
    if [ -e "$checkpoint" ]; then set -- "$@" --resume; fi
    lumina train "$recipe" "$@"
}

build nano-autoencoder "$parts/autoencoder.pt" out="$parts"
build nano-text "$parts/text_encoder.pt" out="$parts"
build nano-detector "$parts/detector.pt" out="$parts"
build nano-captioner "$parts/captioner.pt" out="$parts" tokenizer="$parts/tokenizer"
# shards.json is written last; without it, --force replaces an interrupted folder
[ -e "$home/shards/shards.json" ] || lumina shard nano:40000 "$home/shards" --force
build nano "$home/run/recipe.yaml" frozen="$parts" data="$home/shards" out="$home/run"

rm -rf "$home/nano.new"
cp -r "$home/run/model" "$home/nano.new"
cp -r "$parts/detector" "$home/nano.new/detector"
cp -r "$parts/captioner" "$home/nano.new/captioner"
lumina bench teacache --model "$home/nano.new" --preset fast > "$home/teacache.jsonl"
rm -rf "$home/nano"
mv "$home/nano.new" "$home/nano"
