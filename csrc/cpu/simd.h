// One vector register's worth of lanes. The kernels that include this file are compiled once per instruction set, each
// time in a namespace HPE_ISA of its own, so that the linker cannot mix code for one processor into another's path.
// Arithmetic is written with the operators of GCC's and Clang's vector types; intrinsics only where those have no word.
#pragma once

#include <cmath>

#include "../noise.h"
#include "element.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define HPE_SIMD static inline __attribute__((always_inline))

namespace hpe {
namespace cpu {
namespace HPE_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;  // of float

typedef float VecF __attribute__((vector_size(kBytes)));
typedef double VecD __attribute__((vector_size(kBytes)));
typedef int32_t VecI __attribute__((vector_size(kBytes)));
typedef uint32_t VecU __attribute__((vector_size(kBytes)));

// The arithmetic of a storage type: double for double, float for everything else.
template <class T>
struct Arithmetic {
  using Real = float;
  using Vec = VecF;
  using Mask = VecI;
  static constexpr int kLanes = kBytes / 4;
};

template <>
struct Arithmetic<double> {
  using Real = double;
  using Vec = VecD;
  typedef int64_t Mask __attribute__((vector_size(kBytes)));
  static constexpr int kLanes = kBytes / 8;
};

template <class V, class P>
HPE_SIMD V load_as(const P* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

HPE_SIMD VecF load(const float* p) { return load_as<VecF>(p); }
HPE_SIMD VecD load(const double* p) { return load_as<VecD>(p); }
HPE_SIMD void store(float* p, VecF v) { memcpy(p, &v, sizeof v); }
HPE_SIMD void store(double* p, VecD v) { memcpy(p, &v, sizeof v); }

template <class V, class R>
HPE_SIMD V splat(R v) {
  return v - V{};  // not v + V{}: that would lose the sign of -0
}

HPE_SIMD VecD mul_add(VecD a, VecD b, VecD c) { return a * b + c; }

// bfloat16 in the low halves of the lanes, rounded to nearest even.
HPE_SIMD VecU bfloat16_bits(VecF v) {
  const VecU bits = (VecU)v;
  const VecU is_nan = (VecU)(v != v);
  return (((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16) & ~is_nan) | (is_nan & 0x7FC0u);
}

#if defined(__AVX512F__)

HPE_SIMD VecF load(const BFloat16* p) {
  return (VecF)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_as<__m256i>(p)), 16);
}
HPE_SIMD VecF load(const Half* p) { return _mm512_cvtph_ps(load_as<__m256i>(p)); }
HPE_SIMD void store(BFloat16* p, VecF v) {
  const __m256i packed = _mm512_cvtepi32_epi16((__m512i)bfloat16_bits(v));
  memcpy(p, &packed, sizeof packed);
}
HPE_SIMD void store(Half* p, VecF v) {
  const __m256i packed = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  memcpy(p, &packed, sizeof packed);
}
HPE_SIMD VecF mul_add(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }
HPE_SIMD VecF square_root(VecF a) { return _mm512_sqrt_ps(a); }
HPE_SIMD VecF from_unsigned(VecU a) { return _mm512_cvtepu32_ps((__m512i)a); }
HPE_SIMD VecF from_signed(VecI a) { return _mm512_cvtepi32_ps((__m512i)a); }
HPE_SIMD VecF max_of(VecF value, VecF best) { return _mm512_max_ps(value, best); }  // `best` where value is NaN
HPE_SIMD VecF clamp(VecF v, float low, float high) {
  return _mm512_min_ps(_mm512_max_ps(v, splat<VecF>(low)), splat<VecF>(high));
}

HPE_SIMD void mul_wide(VecU a, uint32_t b, VecU& high, VecU& low) {
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(b));
  const __m512i even = _mm512_mul_epu32((__m512i)a, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), factor);
  high = (VecU)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
  low = (VecU)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}

HPE_SIMD VecF load_bytes(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_as<__m128i>(p))); }
HPE_SIMD VecF load_bytes(const uint8_t* p, const uint8_t* pattern) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_shuffle_epi8(load_as<__m128i>(p), load_as<__m128i>(pattern))));
}

#define HPE_UNPACK(OP, TYPE, A, B) (VecF) _mm512_unpack##OP((TYPE)(A), (TYPE)(B))
#define HPE_PAIRS __m512d

#elif defined(__AVX2__)

HPE_SIMD VecF load(const BFloat16* p) {
  return (VecF)_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_as<__m128i>(p)), 16);
}
HPE_SIMD VecF load(const Half* p) { return _mm256_cvtph_ps(load_as<__m128i>(p)); }
HPE_SIMD void store(BFloat16* p, VecF v) {
  const __m256i bits = (__m256i)bfloat16_bits(v);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  memcpy(p, &packed, sizeof packed);
}
HPE_SIMD void store(Half* p, VecF v) {
  const __m128i packed = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  memcpy(p, &packed, sizeof packed);
}
HPE_SIMD VecF mul_add(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }
HPE_SIMD VecF square_root(VecF a) { return _mm256_sqrt_ps(a); }
HPE_SIMD VecF from_signed(VecI a) { return _mm256_cvtepi32_ps((__m256i)a); }
HPE_SIMD VecF from_unsigned(VecU a) {  // two exact halves, one rounding
  return mul_add(from_signed((VecI)(a >> 16)), splat<VecF>(65536.0f), from_signed((VecI)(a & 0xFFFFu)));
}
HPE_SIMD VecF max_of(VecF value, VecF best) { return _mm256_max_ps(value, best); }
HPE_SIMD VecF clamp(VecF v, float low, float high) {
  return _mm256_min_ps(_mm256_max_ps(v, splat<VecF>(low)), splat<VecF>(high));
}

HPE_SIMD void mul_wide(VecU a, uint32_t b, VecU& high, VecU& low) {
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(b));
  const __m256i even = _mm256_mul_epu32((__m256i)a, factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), factor);
  high = (VecU)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  low = (VecU)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}

HPE_SIMD VecF load_bytes(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_as<__m128i>(p))); }
HPE_SIMD VecF load_bytes(const uint8_t* p, const uint8_t* pattern) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_shuffle_epi8(load_as<__m128i>(p), load_as<__m128i>(pattern))));
}

#define HPE_UNPACK(OP, TYPE, A, B) (VecF) _mm256_unpack##OP((TYPE)(A), (TYPE)(B))
#define HPE_PAIRS __m256d

#else  // any processor: lane by lane where the vector types have no operator

template <class Function>
HPE_SIMD VecF lanes(const Function& value) {
  VecF v;
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = value(lane);
  return v;
}

HPE_SIMD VecF load(const BFloat16* p) {
  return lanes([&](int lane) { return to_float(p[lane]); });
}
HPE_SIMD VecF load(const Half* p) {
  return lanes([&](int lane) { return to_float(p[lane]); });
}
HPE_SIMD void store(BFloat16* p, VecF v) {
  for (int lane = 0; lane < kLanes; ++lane) from_float(v[lane], p[lane]);
}
HPE_SIMD void store(Half* p, VecF v) {
  for (int lane = 0; lane < kLanes; ++lane) from_float(v[lane], p[lane]);
}
HPE_SIMD VecF mul_add(VecF a, VecF b, VecF c) { return a * b + c; }
HPE_SIMD VecF square_root(VecF a) {
  return lanes([&](int lane) { return sqrtf(a[lane]); });
}
HPE_SIMD VecF from_signed(VecI a) { return __builtin_convertvector(a, VecF); }
HPE_SIMD VecF from_unsigned(VecU a) {
  return lanes([&](int lane) { return static_cast<float>(a[lane]); });
}
HPE_SIMD VecF max_of(VecF value, VecF best) { return value > best ? value : best; }
HPE_SIMD VecF clamp(VecF v, float low, float high) {
  v = v > low ? v : splat<VecF>(low);
  return v < high ? v : splat<VecF>(high);
}
HPE_SIMD void mul_wide(VecU a, uint32_t b, VecU& high, VecU& low) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint64_t product = static_cast<uint64_t>(a[lane]) * b;
    high[lane] = static_cast<uint32_t>(product >> 32), low[lane] = static_cast<uint32_t>(product);
  }
}

HPE_SIMD VecF load_bytes(const uint8_t* p) {
  return lanes([&](int lane) { return static_cast<float>(p[lane]); });
}
HPE_SIMD VecF load_bytes(const uint8_t* p, const uint8_t* pattern) {
  return lanes([&](int lane) { return static_cast<float>(p[pattern[lane]]); });
}

#endif

// Interleaves four registers within each four lanes: out[16 bytes q of register m] = lane 4 * q + m of each.
HPE_SIMD void store_interleaved(float* out, const VecF (&v)[4]) {
#ifdef HPE_UNPACK
  const VecF low01 = HPE_UNPACK(lo_ps, VecF, v[0], v[1]), high01 = HPE_UNPACK(hi_ps, VecF, v[0], v[1]);
  const VecF low23 = HPE_UNPACK(lo_ps, VecF, v[2], v[3]), high23 = HPE_UNPACK(hi_ps, VecF, v[2], v[3]);
  store(out, HPE_UNPACK(lo_pd, HPE_PAIRS, low01, low23));
  store(out + kLanes, HPE_UNPACK(hi_pd, HPE_PAIRS, low01, low23));
  store(out + 2 * kLanes, HPE_UNPACK(lo_pd, HPE_PAIRS, high01, high23));
  store(out + 3 * kLanes, HPE_UNPACK(hi_pd, HPE_PAIRS, high01, high23));
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) out[lane % 4 * kLanes + lane / 4 * 4 + i] = v[i][lane];
  }
#endif
}

HPE_SIMD VecD max_of(VecD value, VecD best) { return value > best ? value : best; }

// The first `count` lanes, zeros behind them.
template <class T>
HPE_SIMD auto load_partial(const T* p, int64_t count) {
  T padded[Arithmetic<T>::kLanes] = {};
  for (int64_t lane = 0; lane < count; ++lane) padded[lane] = p[lane];
  return load(padded);
}

template <class T>
HPE_SIMD void store_partial(T* p, typename Arithmetic<T>::Vec v, int64_t count) {
  T all[Arithmetic<T>::kLanes];
  store(all, v);
  for (int64_t lane = 0; lane < count; ++lane) p[lane] = all[lane];
}

// The noise generator's operations on a whole register; see ScalarOps.
struct VectorOps {
  using F = VecF;
  using I = VecI;
  using U = VecU;
  HPE_SIMD F splat(float v) { return HPE_ISA::splat<VecF>(v); }
  HPE_SIMD void mul_wide(U a, uint32_t b, U& high, U& low) { HPE_ISA::mul_wide(a, b, high, low); }
#if defined(__FMA__)
  HPE_SIMD F fma(F a, F b, F c) { return mul_add(a, b, c); }
#else
  HPE_SIMD F fma(F a, F b, F c) {
    return lanes([&](int lane) { return fmaf(a[lane], b[lane], c[lane]); });
  }
#endif
  HPE_SIMD F mul(F a, F b) { return a * b; }
  HPE_SIMD F sqrt(F a) { return square_root(a); }
  HPE_SIMD F from_unsigned(U a) { return HPE_ISA::from_unsigned(a); }
  HPE_SIMD F from_signed(I a) { return HPE_ISA::from_signed(a); }
  HPE_SIMD I bits(F a) { return (I)a; }
  HPE_SIMD F value(I a) { return (F)a; }
};

}  // namespace HPE_ISA
}  // namespace cpu
}  // namespace hpe
