#include <cmath>
#include "../noise.h"
#include "element.h"

namespace hpe {
namespace cpu {
namespace {

struct Strides { int64_t joint, y, x; };
Strides strides_of(const Maps& m) {
  if (m.channels_last) return {1, m.width * m.joints, m.joints};
  return {m.height * m.width, m.width, 1};
}
template <class P> P map_of(P base, const Maps& m, int64_t i) {
  const int64_t hw = m.height * m.width;
  return m.channels_last ? base + (i / m.joints) * hw * m.joints + i % m.joints : base + i * hw;
}
Target target_of(const float* k, const float* w, int64_t i, const Maps& m, const Codec& c) {
  return make_target(k[2 * i], k[2 * i + 1], w ? w[i] : 1.0f, c, m.width, m.height);
}
float target_value(const Target& t, const Codec& c, int y, int x) {
  if (x < t.x0 || x >= t.x1 || y < t.y0 || y >= t.y1) return 0.0f;
  const float s = 1.0f / (2.0f * c.sigma * c.sigma);
  return c.amplitude * axis_value(y - t.cy, s) * axis_value(x - t.cx, s);
}
template <class T> using Real = decltype(to_float(T{}));

template <class T>
double mse_map(T* grad, const T* map, const Target& t, Real<T> scale, const Maps& m, const Codec& c) {
  const Strides s = strides_of(m);
  double sum = 0;
  for (int y = 0; y < m.height; ++y)
    for (int x = 0; x < m.width; ++x) {
      const int64_t at = y * s.y + x * s.x;
      const Real<T> d = to_float(map[at]) - target_value(t, c, y, x);
      sum += static_cast<double>(d) * d;
      if (grad) from_float(scale * d, grad[at]);
    }
  return sum;
}
}  // namespace

void render_heatmaps(void* heatmaps, const float* keypoints, const float* weights, Maps m, Codec c) {
  dispatch(m.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Strides s = strides_of(m);
    for (int64_t i = 0; i < m.batch * m.joints; ++i) {
      const Target t = target_of(keypoints, weights, i, m, c);
      T* map = map_of(static_cast<T*>(heatmaps), m, i);
      for (int y = 0; y < m.height; ++y)
        for (int x = 0; x < m.width; ++x) from_float(static_cast<Real<T>>(target_value(t, c, y, x)), map[y * s.y + x * s.x]);
    }
  });
}

void heatmap_mse_and_grad(void* per_joint, void* loss, void* grad, const void* heatmaps, const float* keypoints,
                          const float* weights, float grad_scale, Maps m, Codec c) {
  dispatch(m.dtype, [&](auto zero) {
    using T = decltype(zero);
    using R = Real<T>;
    const int64_t n = m.batch * m.joints;
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Target t = target_of(keypoints, weights, i, m, c);
      const R scale = static_cast<R>(2.0 * t.weight * grad_scale / (double(n) * m.height * m.width));
      const double sum = mse_map<T>(grad ? map_of(static_cast<T*>(grad), m, i) : nullptr, map_of(static_cast<const T*>(heatmaps), m, i), t, scale, m, c);
      const R value = static_cast<R>(t.weight * sum / (double(m.height) * m.width));
      if (per_joint) static_cast<R*>(per_joint)[i] = value;
      total += value;
    }
    if (loss) *static_cast<R*>(loss) = static_cast<R>(total / n);
  });
}

void heatmap_mse(void* per_joint, void* loss, const void* heatmaps, const float* keypoints, const float* weights,
                 Maps m, Codec c) {
  heatmap_mse_and_grad(per_joint, loss, nullptr, heatmaps, keypoints, weights, 0, m, c);
}

void heatmap_mse_backward(void* grad, const void* grad_out, const void* heatmaps, const float* keypoints,
                          const float* weights, bool per_joint, Maps m, Codec c) {
  dispatch(m.dtype, [&](auto zero) {
    using T = decltype(zero);
    using R = Real<T>;
    const int64_t n = m.batch * m.joints;
    for (int64_t i = 0; i < n; ++i) {
      const Target t = target_of(keypoints, weights, i, m, c);
      const double up = static_cast<const R*>(grad_out)[per_joint ? i : 0];
      const R scale = static_cast<R>(2.0 * t.weight * up / ((per_joint ? 1.0 : double(n)) * m.height * m.width));
      mse_map<T>(map_of(static_cast<T*>(grad), m, i), map_of(static_cast<const T*>(heatmaps), m, i), t, scale, m, c);
    }
  });
}

namespace {
template <class T> struct Source {
  const T* map; const T* flip; Strides s; int64_t width; bool shift;
  float operator()(int64_t y, int64_t x) const {
    const float v = static_cast<float>(to_float(map[y * s.y + x * s.x]));
    if (!flip) return v;
    const int64_t back = shift && x > 0 ? x - 1 : x;
    return 0.5f * (v + static_cast<float>(to_float(flip[y * s.y + (width - 1 - back) * s.x])));
  }
};
template <class S> void refine_quarter(const S& v, int64_t px, int64_t py, const Maps& m, float& x, float& y) {
  if (!(1 < px && px < m.width - 1 && 1 < py && py < m.height - 1)) return;
  const float dx = v(py, px + 1) - v(py, px - 1), dy = v(py + 1, px) - v(py - 1, px);
  x += 0.25f * ((dx > 0) - (dx < 0)), y += 0.25f * ((dy > 0) - (dy < 0));
}
template <class S> void refine_dark(const S& v, int64_t px, int64_t py, const Maps& m, float sigma, float& x, float& y) {
  if (!(1 < px && px < m.width - 2 && 1 < py && py < m.height - 2)) return;
  const int k = 2 * static_cast<int>(std::nearbyint(2.5 * sigma)) + 1, r = k / 2;
  const double s = 0.3 * ((k - 1) * 0.5 - 1) + 0.8;
  double norm = 0;
  for (int i = -r; i <= r; ++i) norm += std::exp(-i * i / (2 * s * s));
  auto blurred = [&](int64_t cy, int64_t cx) {
    double sum = 0;
    for (int i = -r; i <= r; ++i)
      for (int j = -r; j <= r; ++j) {
        const int64_t yy = cy + i, xx = cx + j;
        if (yy < 0 || yy >= m.height || xx < 0 || xx >= m.width) continue;
        sum += std::exp(-(i * i + j * j) / (2 * s * s)) / (norm * norm) * v(yy, xx);
      }
    return std::log(std::fmax(sum, 1e-10));
  };
  auto l = [&](int dy, int dx) { return blurred(py + dy, px + dx); };
  const double c = l(0, 0), dx = .5 * (l(0, 1) - l(0, -1)), dy = .5 * (l(1, 0) - l(-1, 0));
  const double dxx = .25 * (l(0, 2) - 2 * c + l(0, -2)), dyy = .25 * (l(2, 0) - 2 * c + l(-2, 0));
  const double dxy = .25 * (l(1, 1) - l(-1, 1) - l(1, -1) + l(-1, -1));
  const double det = dxx * dyy - dxy * dxy;
  if (det == 0) return;
  x -= static_cast<float>((dyy * dx - dxy * dy) / det), y -= static_cast<float>((dxx * dy - dxy * dx) / det);
}
}  // namespace

void decode_heatmaps(float* coords, float* scores, const void* heatmaps, const void* flipped, const float* to_image,
                     DecodeOptions o, Maps m, Codec c) {
  dispatch(m.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = m.batch * m.joints;
    for (int64_t i = 0; i < n; ++i) {
      const T* flip = nullptr;
      if (flipped) flip = map_of(static_cast<const T*>(flipped), m, i / m.joints * m.joints + o.flip_permutation[i % m.joints]);
      const Source<T> v{map_of(static_cast<const T*>(heatmaps), m, i), flip, strides_of(m), m.width, o.shift_flipped};
      float best = -INFINITY; int64_t px = -1, py = -1;
      for (int64_t y = 0; y < m.height; ++y)
        for (int64_t x = 0; x < m.width; ++x) {
          const float value = v(y, x);
          if (value > best || (px < 0 && value == value)) best = value, px = x, py = y;
        }
      float x = 0, y = 0;
      if (px < 0) {
        best = NAN;
      } else if (best > 0) {
        x = px, y = py;
        if (o.refine == Refine::kQuarter) refine_quarter(v, px, py, m, x, y);
        if (o.refine == Refine::kDark) refine_dark(v, px, py, m, c.sigma, x, y);
        if (c.rounding == Rounding::kFloor) x += 0.5f, y += 0.5f;
      }
      x *= c.stride_x, y *= c.stride_y;
      if (to_image) {
        const float* a = to_image + i / m.joints * 6;
        const float u = a[0] * x + a[1] * y + a[2];
        y = a[3] * x + a[4] * y + a[5], x = u;
      }
      coords[2 * i] = x, coords[2 * i + 1] = y, scores[i] = best;
    }
  });
}

void prepare_images(void* out, const uint8_t* images, const float* color, const float* noise_std,
                    const int64_t* sample_ids, Images d) {
  dispatch(d.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t pixels = d.height * d.width;
    for (int64_t b = 0; b < d.batch; ++b)
      for (int64_t p = 0; p < pixels; ++p) {
        const uint8_t* v = images + (b * pixels + p) * 3;
        for (int ch = 0; ch < 3; ++ch) {
          float value = v[ch];
          if (color) {
            const float* a = color + b * 12 + ch * 4;
            value = fminf(fmaxf(a[0] * v[0] + a[1] * v[1] + a[2] * v[2] + a[3], 0.0f), 255.0f);
          }
          value /= 255.0f;
          if (noise_std) {
            const uint64_t e = p * 3 + ch;
            float four[4];
            normals<ScalarOps>(static_cast<uint32_t>(e / 4), static_cast<uint32_t>((e / 4) >> 32), sample_ids[b], d.seed, four);
            value += noise_std[b] * four[e % 4];
          }
          from_float(static_cast<Real<T>>((value - d.mean[ch]) * d.inv_std[ch]), static_cast<T*>(out)[(b * pixels + p) * 3 + ch]);
        }
      }
  });
}

void set_num_threads(int) {}
const char* simd() { return "portable"; }

}  // namespace cpu
}  // namespace hpe
