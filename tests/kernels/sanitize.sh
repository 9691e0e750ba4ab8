#!/usr/bin/env bash
# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, for every instruction set that this machine runs.
# `sanitize.sh neon`: NEON in QEMU on another machine, five minutes and without sanitizers; it takes Debian's packages
# gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
sources=$here/../../hf_autosparse/kernels/csrc
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ "${1:-}" = neon ]; then
  aarch64-linux-gnu-gcc -O2 -std=gnu11 -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -DISA=neon \
    -I "$sources" "$here/sanitize.c" "$sources"/*.c -lm -static -o "$scratch/run"
  echo -n "neon: "
  qemu-aarch64 "$scratch/run"
  exit
fi

run() { # name of the instruction set, flags
  "${CC:-cc}" -O2 -g -std=gnu11 -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast \
    -fsanitize=address,undefined -fno-sanitize-recover=all "-DISA=$1" "${@:2}" -I "$sources" \
    "$here/sanitize.c" "$sources"/*.c -lm -o "$scratch/run"
  echo -n "$1: "
  OMP_WAIT_POLICY=passive ASAN_OPTIONS=detect_leaks=1 "$scratch/run"
}

case $(uname -m) in
  x86_64)
    run sse2
    if grep -qw avx2 /proc/cpuinfo; then run avx2 -mavx2 -mfma -mf16c; fi
    if grep -qw avx512dq /proc/cpuinfo; then
      avx512=(-mavx2 -mfma -mf16c -mavx512f -mavx512vl -mavx512bw -mavx512dq)
      run avx512 "${avx512[@]}"
      if grep -qw avx512_vbmi2 /proc/cpuinfo && grep -qw avx512_vnni /proc/cpuinfo; then
        run avx512vbmi2 "${avx512[@]}" -mavx512vbmi2 -mavx512vnni
        if grep -qw avx512_bf16 /proc/cpuinfo; then
          run avx512bf16 "${avx512[@]}" -mavx512vbmi2 -mavx512vnni -mavx512bf16
        fi
      fi
    fi
    ;;
  *) run generic ;;
esac
