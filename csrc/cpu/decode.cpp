#include "axes.h"

namespace hpe {
namespace cpu {
namespace HPE_ISA {
namespace {

// The values of one map, or the flip-test average of two, wherever they lie.
template <class T>
struct Values {
  using R = typename Arithmetic<T>::Real;
  const T* map;      // value (y, x) at (y * width + x) * step
  const T* flipped;  // of the mirrored picture, or null
  int64_t height, width, step;
  bool shift;

  R operator()(int64_t y, int64_t x) const {
    const R value = to_float(map[(y * width + x) * step]);
    if (!flipped) return value;
    const int64_t back = shift && x > 0 ? x - 1 : x;
    return R(0.5) * (value + to_float(flipped[(y * width + width - 1 - back) * step]));
  }
};

struct Peak {
  int64_t x, y;  // -1 where there is none: a map of NaN only
  double score;
};

struct Point {
  double x, y;
};

// The official quarter pixel toward the higher neighbour; both axes must be off the border.
template <class T>
Point quarter_offset(const Values<T>& value, const Peak& p) {
  if (!(1 < p.x && p.x < value.width - 1 && 1 < p.y && p.y < value.height - 1)) return {0, 0};
  const auto dx = value(p.y, p.x + 1) - value(p.y, p.x - 1), dy = value(p.y + 1, p.x) - value(p.y - 1, p.x);
  return {0.25 * ((dx > 0) - (dx < 0)), 0.25 * ((dy > 0) - (dy < 0))};
}

// Half of a Gaussian blur's kernel: OpenCV's standard deviation for the size that mmpose takes from the codec's sigma.
struct BlurKernel {
  int radius;
  double* weight;  // [radius + 1]

  BlurKernel(Arena& arena, const DecodeTask& task) : radius(-1), weight(nullptr) {
    if (task.options.refine != Refine::kDark) return;
    radius = static_cast<int>(nearbyint(2.5 * task.codec.sigma));
    weight = arena.take<double>(radius + 1);
  }

  void prepare() const {
    const double deviation = 0.3 * (radius - 1) + 0.8;
    double sum = 0;
    for (int i = 0; i <= radius; ++i) {
      weight[i] = exp(-i * i / (2 * deviation * deviation));
      sum += i ? 2 * weight[i] : weight[i];
    }
    for (int i = 0; i <= radius; ++i) weight[i] /= sum;
  }

  // log of the blurred map at (y, x), which takes zeros from beyond the border.
  template <class T>
  double log_blurred(const Values<T>& value, int64_t y, int64_t x) const {
    double sum = 0;
    for (int dy = -radius; dy <= radius; ++dy) {
      if (y + dy < 0 || y + dy >= value.height) continue;
      double row = 0;
      for (int dx = -radius; dx <= radius; ++dx) {
        if (x + dx >= 0 && x + dx < value.width) row += weight[dx < 0 ? -dx : dx] * value(y + dy, x + dx);
      }
      sum += weight[dy < 0 ? -dy : dy] * row;
    }
    return log(fmax(sum, 1e-10));
  }
};

// DARK (Zhang et al., CVPR 2020) as mmpose computes it: one Newton step on the log of the blurred map. Only the
// thirteen pixels of the stencil are blurred. (mmpose scales the map back to its old maximum, a constant in the log.)
// Where the curvature all but vanishes, mmpose's step is as long as may be; here a step beyond the stencil is left out.
template <class T>
Point dark_offset(const Values<T>& value, const Peak& p, const BlurKernel& kernel) {
  if (!(1 < p.x && p.x < value.width - 2 && 1 < p.y && p.y < value.height - 2)) return {0, 0};
  const auto at = [&](int dy, int dx) { return kernel.log_blurred(value, p.y + dy, p.x + dx); };
  const double centre = at(0, 0);
  const double dx = 0.5 * (at(0, 1) - at(0, -1)), dy = 0.5 * (at(1, 0) - at(-1, 0));
  const double dxx = 0.25 * (at(0, 2) - 2 * centre + at(0, -2)), dyy = 0.25 * (at(2, 0) - 2 * centre + at(-2, 0));
  const double dxy = 0.25 * (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1));
  const double determinant = dxx * dyy - dxy * dxy;
  if (!(fabs(determinant) > 0)) return {0, 0};  // not NaN either
  const Point step{-(dyy * dx - dxy * dy) / determinant, -(dxx * dy - dxy * dx) / determinant};
  return fmax(fabs(step.x), fabs(step.y)) <= kDarkReach ? step : Point{0, 0};
}

template <class T>
void write_joint(const DecodeTask& task, int64_t map, const Values<T>& value, const Peak& peak,
                 const BlurKernel& kernel) {
  float x = 0, y = 0;
  if (peak.score > 0) {  // the official rule: without a positive maximum the joint is at (0, 0)
    Point offset{0, 0};
    if (task.options.refine == Refine::kQuarter) offset = quarter_offset(value, peak);
    if (task.options.refine == Refine::kDark) offset = dark_offset(value, peak, kernel);
    const double half = task.codec.rounding == Rounding::kFloor ? 0.5 : 0.0;  // what flooring loses on average
    x = static_cast<float>(peak.x + offset.x + half) * task.codec.stride_x;
    y = static_cast<float>(peak.y + offset.y + half) * task.codec.stride_y;
  }
  if (task.to_image) {
    const float* a = task.to_image + map / task.maps.joints * 6;
    const float u = a[0] * x + a[1] * y + a[2];
    y = a[3] * x + a[4] * y + a[5], x = u;
  }
  task.coords[2 * map] = x, task.coords[2 * map + 1] = y, task.scores[map] = static_cast<float>(peak.score);
}

// Rows are taken in spans.
int64_t span_rows(const DecodeTask& task) {
  constexpr int64_t kSpan = 256;  // elements that are searched again for the maximum
  const int64_t row = task.maps.width * task.interleaved(), rows = row ? kSpan / row : 1;
  return rows > 1 ? rows : 1;
}

// Of each lane's maximum so far: its value and the first row of the span that has it first. Lanes belong to joints as
// in loss.cpp.
template <class R>
struct Best {
  R* value;     // [J * lanes]
  R* top;       // [J * lanes] of the span at hand
  R* row;       // [J * lanes]; a row number is exact in a float, rows being fewer than 2^24
  R* averaged;  // [span rows, W, J] flip-test average

  Best(Arena& arena, const DecodeTask& task, int lanes)
      : value(arena.take<R>(task.interleaved() * lanes)),
        top(arena.take<R>(task.interleaved() * lanes)),
        row(arena.take<R>(task.interleaved() * lanes)),
        averaged(arena.take<R>(task.flipped ? span_rows(task) * task.maps.width * task.interleaved() : 0)) {}
};

template <class T>
struct Decode {
  using R = typename Arithmetic<T>::Real;
  using Vec = typename Arithmetic<T>::Vec;
  static constexpr int kLanes = Arithmetic<T>::kLanes;

  // Takes a span of n elements of type E (T, or R where they are averages), whole rows of the item, into `best`.
  template <class E>
  HPE_SIMD void take_span(const E* p, int64_t y, const Best<R>& best, int64_t joints, int64_t n) {
    const int64_t vectors = n / kLanes;
    const Vec row = splat<Vec>(static_cast<R>(y));
    if (joints == 1) {
      keep(top_of(p, vectors), row, best, 0);
    } else {
      take_interleaved(p, row, best, joints, vectors);
    }
    if (n % kLanes) tail(p, row, best, joints, n);
  }

  template <class E>
  HPE_SIMD Vec top_of(const E* p, int64_t vectors) {
    Vec top[4];
    for (Vec& t : top) t = splat<Vec>(-static_cast<R>(INFINITY));
    int64_t v = 0;
    for (; v + 4 <= vectors; v += 4) {
      for (int i = 0; i < 4; ++i) top[i] = max_of(load(p + (v + i) * kLanes), top[i]);
    }
    for (; v < vectors; ++v) top[0] = max_of(load(p + v * kLanes), top[0]);
    return max_of(max_of(top[0], top[1]), max_of(top[2], top[3]));
  }

  template <class E>
  HPE_SIMD void take_interleaved(const E* p, Vec row, const Best<R>& best, int64_t joints, int64_t vectors) {
    const int64_t used = joints < vectors ? joints : vectors;
    R* const tops = best.top;  // a copy, which the compiler knows that no store changes
    for (int64_t k = 0; k < used; ++k) {
      store(tops + k * kLanes, max_of(load(p + k * kLanes), splat<Vec>(-static_cast<R>(INFINITY))));
    }
    for (int64_t v = joints; v < vectors; v += joints) {
      const int64_t count = vectors - v < joints ? vectors - v : joints;
      for (int64_t k = 0; k < count; ++k) {
        store(tops + k * kLanes, max_of(load(p + (v + k) * kLanes), load(tops + k * kLanes)));
      }
    }
    for (int64_t k = 0; k < used; ++k) keep(load(tops + k * kLanes), row, best, k * kLanes);
  }

  HPE_SIMD void keep(Vec top, Vec row, const Best<R>& best, int64_t at) {
    const Vec old = load(best.value + at);
    const auto better = top > old;
    store(best.value + at, better ? top : old);
    store(best.row + at, better ? row : load(best.row + at));
  }

  template <class E>
  static void tail(const E* p, Vec row, const Best<R>& best, int64_t joints, int64_t n) {
    R padded[kLanes];
    const int64_t vectors = n / kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t at = vectors * kLanes + lane;
      padded[lane] = at < n ? static_cast<R>(to_float(p[at])) : -static_cast<R>(INFINITY);
    }
    keep(max_of(load(padded), splat<Vec>(-static_cast<R>(INFINITY))), row, best, vectors % joints * kLanes);
  }

  static Values<T> values_of(const DecodeTask& task, int64_t item, int64_t j) {
    const int64_t joints = task.interleaved();
    const auto map_at = [&](const void* maps, int64_t b, int64_t joint) {
      const int64_t pixels = task.maps.height * task.maps.width, total = task.maps.joints;
      return static_cast<const T*>(maps) + (joints == 1 ? (b * total + joint) * pixels : b * total * pixels + joint);
    };
    const int64_t map = item * joints + j, b = map / task.maps.joints, joint = map % task.maps.joints;
    const T* flipped = task.flipped ? map_at(task.flipped, b, task.options.flip_permutation[joint]) : nullptr;
    return {map_at(task.heatmaps, b, joint), flipped, task.maps.height, task.maps.width, joints,
            task.options.shift_flipped};
  }

  static Peak find_peak(const Values<T>& value, const Best<R>& best, int64_t j) {
    R top = -static_cast<R>(INFINITY), row = 0;
    for (int i = 0; i < kLanes; ++i) {
      const R v = best.value[i * value.step + j], y = best.row[i * value.step + j];
      if (v > top || (v == top && y < row)) top = v, row = y;
    }
    const bool found = top > -static_cast<R>(INFINITY);
    for (int64_t y = found ? static_cast<int64_t>(row) : 0; y < value.height; ++y) {
      for (int64_t x = 0; x < value.width; ++x) {
        const R v = value(y, x);
        if (found ? v == top : v == v) return {x, y, static_cast<double>(v)};
      }
    }
    return {-1, -1, NAN};
  }

  static void average_row(const DecodeTask& task, int64_t item, int64_t y, R* out) {
    const int64_t joints = task.interleaved();
    for (int64_t j = 0; j < joints; ++j) {
      const Values<T> value = values_of(task, item, j);
      for (int64_t x = 0; x < value.width; ++x) out[x * joints + j] = value(y, x);
    }
  }

  static void items(const DecodeTask& task, int64_t first, int64_t last, void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    const Best<R> best(arena, task, kLanes);
    const BlurKernel kernel(arena, task);
    kernel.prepare();
    const int64_t joints = task.interleaved(), n = task.maps.width * joints, rows = span_rows(task);
    for (int64_t item = first; item < last; ++item) {
      for (int64_t i = 0; i < joints * kLanes; ++i) best.value[i] = -static_cast<R>(INFINITY), best.row[i] = 0;
      const T* map = static_cast<const T*>(task.heatmaps) + item * task.item_elements();
      for (int64_t y = 0; y < task.maps.height; y += rows) {
        const int64_t count = (task.maps.height - y < rows ? task.maps.height - y : rows) * n;
        if (task.flipped) {
          for (int64_t i = 0; i * n < count; ++i) average_row(task, item, y + i, best.averaged + i * n);
          take_span(best.averaged, y, best, joints, count);
        } else {
          take_span(map + y * n, y, best, joints, count);
        }
      }
      for (int64_t j = 0; j < joints; ++j) {
        const Values<T> value = values_of(task, item, j);
        write_joint(task, item * joints + j, value, find_peak(value, best, j), kernel);
      }
    }
  }
};

}  // namespace

size_t decode_scratch(const DecodeTask& task) {
  Arena arena{nullptr};
  Best<double>(arena, task, kLanes);
  BlurKernel(arena, task);
  return arena.used;
}

void decode_items(const void* pointer, int64_t first, int64_t last, void* scratch) {
  const DecodeTask& task = *static_cast<const DecodeTask*>(pointer);
  dispatch(task.maps.dtype, [&](auto zero) { Decode<decltype(zero)>::items(task, first, last, scratch); });
}

}  // namespace HPE_ISA
}  // namespace cpu
}  // namespace hpe
