#!/bin/bash
# Runs one stage on one worker of a TPU slice; started by `python -m launch.tpu`.
# Usage: worker.sh BUCKET FOLDER NAME CODE_URL CODE_DIR BUCKET_DIR COMMAND...
# The exit status is that of COMMAND; it is also left beside the log, because gcloud
# does not pass on the statuses of several workers.
set -euo pipefail

bucket=$1 folder=$2 name=$3 code_url=$4 code_dir=$HOME/$5 bucket_dir=$HOME/$6
shift 6

if ! command -v gcsfuse >/dev/null; then
  release=gcsfuse-$(lsb_release -c -s)
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]" \
    "https://packages.cloud.google.com/apt $release main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -y -qq gcsfuse bubblewrap
fi
mkdir -p "$bucket_dir"
if ! mountpoint -q "$bucket_dir"; then
  gcsfuse --implicit-dirs ${folder:+--only-dir "$folder"} "$bucket" "$bucket_dir"
fi

# A process that outlived a lost connection would hold the chips.
pkill -KILL -u "$USER" -f "[p]ython -m launch[.]" || true

rm -rf "$code_dir"
mkdir -p "$code_dir"
gcloud storage cat "$code_url" | tar -xz -C "$code_dir"
cd "$code_dir"
venv=$HOME/mlagent_venv
if ! [ -f "$venv/done" ] || ! cmp -s setup.py "$venv/done"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet -e '.[tpu]'
  cp setup.py "$venv/done"
fi
export PATH="$venv/bin:$PATH" PYTHONUNBUFFERED=1

logs=$bucket_dir/runs/$name/logs
mkdir -p "$logs"
rm -f "$logs/$(hostname).status"
status=0
"$@" 2>&1 | tee -a "$logs/$(hostname).log" || status=$?
echo "$status" >"$logs/$(hostname).status"
exit "$status"
