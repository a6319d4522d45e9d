// Counter-based Gaussian noise: Philox4x32-10 and Box-Muller, written once for scalars, CPU vectors and CUDA.
//
// Element i of sample s under a seed is normal i % 4 of the counter (i / 4, s) with the seed as key, so a sample's
// noise depends neither on its batch nor on the device. Every product that is added to something is an explicit fused
// multiply-add and the elementary functions are our own polynomials: all instantiations give the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "target.h"

namespace hpe {

// The operations the generator needs, on one value. CPU vectors bring their own struct of the same shape (cpu/simd.h).
struct ScalarOps {
  using F = float;
  using I = int32_t;
  using U = uint32_t;
  HPE_HOST_DEVICE F splat(float v) { return v; }
  HPE_HOST_DEVICE void mul_wide(U a, uint32_t b, U& high, U& low) {
    const uint64_t product = static_cast<uint64_t>(a) * b;
    high = static_cast<U>(product >> 32), low = static_cast<U>(product);
  }
#ifdef __CUDA_ARCH__  // nvcc would fuse a bare product into a later addition
  HPE_HOST_DEVICE F fma(F a, F b, F c) { return __fmaf_rn(a, b, c); }
  HPE_HOST_DEVICE F mul(F a, F b) { return __fmul_rn(a, b); }
  HPE_HOST_DEVICE F sqrt(F a) { return __fsqrt_rn(a); }
  HPE_HOST_DEVICE F from_unsigned(U a) { return __uint2float_rn(a); }
  HPE_HOST_DEVICE F from_signed(I a) { return __int2float_rn(a); }
  HPE_HOST_DEVICE I bits(F a) { return __float_as_int(a); }
  HPE_HOST_DEVICE F value(I a) { return __int_as_float(a); }
#else
  HPE_HOST_DEVICE F fma(F a, F b, F c) { return fmaf(a, b, c); }
  HPE_HOST_DEVICE F mul(F a, F b) { return a * b; }
  HPE_HOST_DEVICE F sqrt(F a) { return sqrtf(a); }
  HPE_HOST_DEVICE F from_unsigned(U a) { return static_cast<F>(a); }
  HPE_HOST_DEVICE F from_signed(I a) { return static_cast<F>(a); }
  HPE_HOST_DEVICE I bits(F a) {
    I b;
    memcpy(&b, &a, sizeof b);
    return b;
  }
  HPE_HOST_DEVICE F value(I a) {
    F b;
    memcpy(&b, &a, sizeof b);
    return b;
  }
#endif
};

// Philox4x32-10 (Salmon et al., SC 2011) on the counter `words`, in place.
template <class Ops>
HPE_HOST_DEVICE void philox(typename Ops::U (&words)[4], uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    typename Ops::U high0, low0, high1, low1;
    Ops::mul_wide(words[0], 0xD2511F53u, high0, low0);
    Ops::mul_wide(words[2], 0xCD9E8D57u, high1, low1);
    words[0] = high1 ^ words[1] ^ key0, words[1] = low1;
    words[2] = high0 ^ words[3] ^ key1, words[3] = low0;
    key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
  }
}

// -2 ln((word + 0.5) / 2^32). Relative error about 1e-7, also next to 1, where the float uniform alone lacks the bits.
template <class Ops>
HPE_HOST_DEVICE typename Ops::F minus_two_log(typename Ops::U word) {
  using F = typename Ops::F;
  using I = typename Ops::I;
  const F scale = Ops::splat(2.3283064365386963e-10f), half = Ops::splat(1.1641532182693481e-10f);  // 2^-32, 2^-33
  const F u = Ops::fma(Ops::from_unsigned(word), scale, half);
  const I exponent = (Ops::bits(u) - 0x3F3504F3) & ~0x7FFFFF;  // in place; u = m * 2^e with m in [sqrt(1/2), sqrt(2))
  const F below = Ops::value(Ops::bits(u) - exponent) - 1.0f;
  const F near_one = -Ops::fma(Ops::from_unsigned(~word), scale, half);  // u - 1 from the complement, exponent 0
  const I use_below = exponent >> 31;
  const F f = Ops::value((Ops::bits(below) & use_below) | (Ops::bits(near_one) & ~use_below));
  F p = Ops::splat(-0.07634493f);  // (ln(1 + f) - f + f^2 / 2) / f^3
  p = Ops::fma(p, f, Ops::splat(0.12761575f));
  p = Ops::fma(p, f, Ops::splat(-0.13160183f));
  p = Ops::fma(p, f, Ops::splat(0.14201759f));
  p = Ops::fma(p, f, Ops::splat(-0.16623357f));
  p = Ops::fma(p, f, Ops::splat(0.20001227f));
  p = Ops::fma(p, f, Ops::splat(-0.2500082f));
  p = Ops::fma(p, f, Ops::splat(0.3333333f));
  const F f2 = Ops::mul(f, f);
  const F log_mantissa = Ops::fma(Ops::mul(f2, f), p, Ops::fma(Ops::splat(-0.5f), f2, f));
  const F log_u = Ops::fma(Ops::from_signed(exponent >> 23), Ops::splat(0.69314718f), log_mantissa);
  return Ops::mul(Ops::splat(-2.0f), log_u);
}

// Sine and cosine of 2 pi (word + 0.5) / 2^32: the quadrant in integers, polynomials on [-pi/4, pi/4].
template <class Ops>
HPE_HOST_DEVICE void sincos_turn(typename Ops::U word, typename Ops::F& sine, typename Ops::F& cosine) {
  using F = typename Ops::F;
  using I = typename Ops::I;
  using U = typename Ops::U;
  const U quadrant = (word + 0x20000000u) >> 30;
  const I rest = (I)(word - (quadrant << 30));
  const F x = Ops::fma(Ops::from_signed(rest), Ops::splat(1.4629180793e-9f), Ops::splat(7.314590396e-10f));
  const F z = Ops::mul(x, x);
  F s = Ops::fma(Ops::splat(-0.000195173f), z, Ops::splat(0.008332178f));
  s = Ops::fma(s, z, Ops::splat(-0.16666655f));
  s = Ops::fma(Ops::mul(s, z), x, x);
  F c = Ops::fma(Ops::splat(2.4438452e-05f), z, Ops::splat(-0.0013887368f));
  c = Ops::fma(c, z, Ops::splat(0.041666646f));
  c = Ops::fma(Ops::mul(c, z), z, Ops::fma(Ops::splat(-0.5f), z, Ops::splat(1.0f)));
  const I swap = -(I)(quadrant & 1u);  // all ones in odd quadrants
  const I sine_bits = (Ops::bits(c) & swap) | (Ops::bits(s) & ~swap);
  const I cosine_bits = (Ops::bits(s) & swap) | (Ops::bits(c) & ~swap);
  sine = Ops::value(sine_bits ^ (I)((quadrant & 2u) << 30));
  cosine = Ops::value(cosine_bits ^ (I)(((quadrant + 1u) & 2u) << 30));
}

// Four normals of one counter: elements 4 * block .. 4 * block + 3 of the sample.
template <class Ops>
HPE_HOST_DEVICE void normals(typename Ops::U block_low, typename Ops::U block_high, uint64_t sample, uint64_t seed,
                             typename Ops::F (&out)[4]) {
  using F = typename Ops::F;
  const typename Ops::U zero = block_low ^ block_low;
  typename Ops::U words[4] = {block_low, block_high, zero + static_cast<uint32_t>(sample),
                              zero + static_cast<uint32_t>(sample >> 32)};
  philox<Ops>(words, seed);
  for (int pair = 0; pair < 2; ++pair) {
    F sine, cosine;
    sincos_turn<Ops>(words[2 * pair + 1], sine, cosine);
    const F r = Ops::sqrt(minus_two_log<Ops>(words[2 * pair]));
    out[2 * pair] = Ops::mul(r, cosine), out[2 * pair + 1] = Ops::mul(r, sine);
  }
}

}  // namespace hpe
