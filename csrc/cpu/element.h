// Storage types of heatmaps and images, and their scalar conversions (round to nearest even, as torch rounds).
#pragma once

#include <cstdint>
#include <cstring>

#include "../target.h"

namespace hpe {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

HPE_HOST_DEVICE uint32_t float_bits(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}

HPE_HOST_DEVICE float float_of(uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

HPE_HOST_DEVICE float to_float(float v) { return v; }
HPE_HOST_DEVICE double to_float(double v) { return v; }
HPE_HOST_DEVICE float to_float(BFloat16 v) { return float_of(static_cast<uint32_t>(v.bits) << 16); }

HPE_HOST_DEVICE float to_float(Half v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16, rest = v.bits & 0x7FFFu;
  if (rest >= 0x7C00u) return float_of(sign | 0x7F800000u | (rest & 0x3FFu) << 13);  // infinity and NaN
  // Normal numbers and denormals alike: place the bits under a tiny exponent and scale by 2^112.
  return float_of(sign | float_bits(float_of(rest << 13) * 5.192296858534828e33f));
}

HPE_HOST_DEVICE void from_float(float v, float& out) { out = v; }
HPE_HOST_DEVICE void from_float(double v, double& out) { out = v; }

HPE_HOST_DEVICE void from_float(float v, BFloat16& out) {
  const uint32_t bits = float_bits(v);
  const uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
  out.bits = static_cast<uint16_t>(v != v ? 0x7FC0u : rounded >> 16);
}

HPE_HOST_DEVICE void from_float(float v, Half& out) {
  const uint32_t bits = float_bits(v), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude >= 0x47800000u) {  // 65536 and above: infinity, or NaN
    half = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // a denormal half: adding 0.5 lets the float unit round at 2^-24
    half = float_bits(float_of(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | half);
}

// Calls body(T{}) with the storage type of a dtype.
template <class Body>
HPE_HOST_DEVICE void dispatch(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(float{});
    case DType::kFloat16:
      return body(Half{});
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kFloat64:
      return body(double{});
  }
}

}  // namespace hpe
