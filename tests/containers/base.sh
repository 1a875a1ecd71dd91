#!/usr/bin/env bash
# base.sh IMAGE: make the base of the images from Debian's packages, where no registry answers for python:3.11-slim.
# Debian 12 has Python 3.11; wget is what the proxy's health check asks with, as in caddy:2.
set -euo pipefail
folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,wget bookworm "$folder"
rm -rf "$folder"/var/cache/apt/archives/*.deb "$folder"/var/lib/apt/lists/*
tar --directory "$folder" --create . | podman import --change 'ENV LANG=C.UTF-8' - "$1"
