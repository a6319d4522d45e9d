// The target heatmap, defined once for the CPU and for CUDA.
#pragma once

#include <cmath>

#include "kernels.h"

#ifdef __CUDACC__
#define HPE_HOST_DEVICE static __host__ __device__ __forceinline__
#else
// Internal and inlined: a file that is compiled for one instruction set shares no code with the others.
#define HPE_HOST_DEVICE static inline __attribute__((always_inline))
#endif

namespace hpe {

// What one joint draws: amplitude * axis_value(x - cx) * axis_value(y - cy) on [x0, x1) x [y0, y1), zero elsewhere.
struct Target {
  float cx, cy;  // centre, heatmap pixels
  float weight;  // of the joint in the loss; outlives an empty support (an off-map window that touches the border)
  int x0, x1, y0, y1;  // support, clipped to the map; x0 == x1 where nothing is drawn
};

// -ln(1e-12): an axis is zero below that, and the product of two, 1e-24, is no denormal in float32.
constexpr float kMaxExponent = 27.6310211f;

// Gaussian of one axis at distance d from the centre.
HPE_HOST_DEVICE float axis_value(float d, float inv_two_variance) {
  const float exponent = d * d * inv_two_variance;
  return exponent < kMaxExponent ? expf(-exponent) : 0.0f;
}

HPE_HOST_DEVICE float round_centre(float c, Rounding rounding) {
  if (rounding == Rounding::kNone) return c;
  return rounding == Rounding::kFloor ? floorf(c) : truncf(c + 0.5f);  // truncf(-0.7 + 0.5) is 0, as int() is in Python
}

HPE_HOST_DEVICE int clamp_int(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

HPE_HOST_DEVICE Target make_target(float x, float y, float weight, const Codec& codec, int width, int height) {
  Target t{0.0f, 0.0f, 0.0f, 0, 0, 0, 0};
  constexpr float kFar = 1e6f;  // keeps the conversions to int defined
  const float cx = fminf(fmaxf(x / codec.stride_x, -kFar), kFar), cy = fminf(fmaxf(y / codec.stride_y, -kFar), kFar);
  const bool finite = x - x == 0.0f && y - y == 0.0f && weight - weight == 0.0f;
  if (!finite) return t;
  t.cx = round_centre(cx, codec.rounding);
  t.cy = round_centre(cy, codec.rounding);
  t.weight = weight;
  int left, right, top, bottom;
  if (codec.radius >= 0) {  // a square window around the rounded centre
    const int mx = static_cast<int>(truncf(t.cx + (codec.rounding == Rounding::kNone ? 0.5f : 0.0f)));
    const int my = static_cast<int>(truncf(t.cy + (codec.rounding == Rounding::kNone ? 0.5f : 0.0f)));
    left = mx - codec.radius, right = mx + codec.radius + 1, top = my - codec.radius, bottom = my + codec.radius + 1;
    // Strict on the lower side, as in the official code: a window that ends at 0 draws nothing yet keeps its weight.
    if (left >= width || top >= height || right < 0 || bottom < 0) t.weight = 0.0f;
  } else {  // the whole map, less the tails that are zero anyway
    const float reach = codec.sigma * sqrtf(2.0f * kMaxExponent);
    left = static_cast<int>(floorf(t.cx - reach)), right = static_cast<int>(ceilf(t.cx + reach)) + 1;
    top = static_cast<int>(floorf(t.cy - reach)), bottom = static_cast<int>(ceilf(t.cy + reach)) + 1;
  }
  if (!(t.weight > 0.5f)) return t;  // the official gate: half-visible joints have an empty target
  t.x0 = clamp_int(left, 0, width), t.x1 = clamp_int(right, 0, width);
  t.y0 = clamp_int(top, 0, height), t.y1 = clamp_int(bottom, 0, height);
  if (t.x0 == t.x1 || t.y0 == t.y1) t.x0 = t.x1 = t.y0 = t.y1 = 0;
  return t;
}

}  // namespace hpe
