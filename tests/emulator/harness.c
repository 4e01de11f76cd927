/* SPDX-License-Identifier: Apache-2.0
 *
 * Example program for the emulator: applies a few AVX-512 instructions to the
 * 32 floats in input.bin and writes the results, 16 floats each, to stdout.
 * The inputs come from a file so that the compiler cannot compute ahead.
 */
#include <immintrin.h>
#include <stdio.h>

static int write_vector(__m512 value) {
  float lanes[16];
  _mm512_storeu_ps(lanes, value);
  return fwrite(lanes, sizeof lanes, 1, stdout) == 1;
}

/* vpermi2ps by name: the intrinsic may become vpermt2ps instead. */
static __m512 permute_two(__m512 low, __m512i index, __m512 high) {
  __m512i result = index;
  __asm__("vpermi2ps %2, %1, %0" : "+v"(result) : "v"(low), "v"(high));
  return _mm512_castsi512_ps(result);
}

/* vpermb (AVX-512 VBMI): all 64 bytes in reverse. */
static __m512 reverse_bytes(__m512 value) {
  unsigned char order[64];
  for (int i = 0; i < 64; ++i) order[i] = (unsigned char)(63 - i);
  const __m512i index = _mm512_loadu_si512(order);
  return _mm512_castsi512_ps(
      _mm512_permutexvar_epi8(index, _mm512_castps_si512(value)));
}

int main(void) {
  float input[32];
  FILE* file = fopen("/input.bin", "rb");
  if (!file || fread(input, sizeof input, 1, file) != 1) {
    fputs("cannot read /input.bin\n", stderr);
    return 1;
  }
  const __m512 low = _mm512_loadu_ps(input);
  const __m512 high = _mm512_loadu_ps(input + 16);
  /* index i: 31 - 2 * i, modulo 32 */
  const __m512i index = _mm512_setr_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11,
                                    9, 7, 5, 3, 1);
  const __mmask16 greater = _mm512_cmp_ps_mask(low, high, _CMP_GT_OQ);
  const int written =
      write_vector(_mm512_permutex2var_ps(low, index, high)) &&
      write_vector(permute_two(low, index, high)) &&
      write_vector(_mm512_fmadd_ps(low, high, low)) &&
      write_vector(_mm512_maskz_compress_ps(greater, low)) &&
      write_vector(_mm512_maskz_expand_ps(greater, low)) &&
      write_vector(_mm512_i32gather_ps(index, input, 4)) &&
      write_vector(reverse_bytes(low));
  return written ? 0 : 1;
}
