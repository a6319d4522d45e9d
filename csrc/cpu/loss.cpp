#include "axes.h"

namespace hpe {
namespace cpu {
namespace HPE_ISA {
namespace {

// With J interleaved maps, lane l of vector v holds joint (v * lanes + l) % J: the pattern repeats every J vectors. So
// each thread keeps J vectors of scales and of sums, element i * J + j of which belongs to joint j (J = 1 in NCHW).
template <class R>
struct Patterns {
  R* scale;  // [J * lanes] of the gradient
  R* sum;    // [J * lanes] of squared differences
  R* row;    // [W, J] target of one row, zero where no joint draws

  Patterns(Arena& arena, const MapTask& task, int lanes)
      : scale(arena.take<R>(task.interleaved() * lanes)),
        sum(arena.take<R>(task.interleaved() * lanes)),
        row(arena.take<R>(task.maps.width * task.interleaved())) {}
};

template <class T, bool kSum, bool kGrad>
struct Loss {
  using R = typename Arithmetic<T>::Real;
  using Vec = typename Arithmetic<T>::Vec;
  static constexpr int kLanes = Arithmetic<T>::kLanes;

  // One vector of differences d = p - t: sum += d^2, grad = scale * d.
  HPE_SIMD void step(Vec d, T* grad, Vec scale, Vec& sum) {
    if (kSum) sum = mul_add(d, d, sum);
    if (kGrad) store(grad, scale * d);
  }

  HPE_SIMD Vec difference(const T* p, const R* t, int64_t at) { return t ? load(p) - load(t + at) : load(p); }

  // n elements of interleaved maps from the start of a row, with their targets t (null: all zero). kJoints: how many
  // maps, where the compiler may know it and keep their sums in registers; else 0.
  template <int kJoints>
  HPE_SIMD void run(const T* p, const R* t, T* grad, const Patterns<R>& patterns, int64_t joints, int64_t n) {
    const int64_t vectors = n / kLanes, periodic = kJoints ? vectors / kJoints * kJoints : 0;
    if (periodic) whole_periods<kJoints>(p, t, grad, patterns, periodic);
    for (int64_t v = periodic, k = 0; v < vectors; ++v, k = k + 1 == joints ? 0 : k + 1) {
      const int64_t at = v * kLanes;
      Vec sum = kSum ? load(patterns.sum + k * kLanes) : Vec{};
      step(difference(p + at, t, at), kGrad ? grad + at : nullptr, load(patterns.scale + k * kLanes), sum);
      if (kSum) store(patterns.sum + k * kLanes, sum);
    }
    if (n % kLanes) tail(p, t, grad, patterns, joints, n);
  }

  template <int kJoints>
  HPE_SIMD void whole_periods(const T* p, const R* t, T* grad, const Patterns<R>& patterns, int64_t vectors) {
    Vec sums[kJoints ? kJoints : 1];
    const R* const scales = patterns.scale;  // a copy, which the compiler knows that no store changes
    for (int k = 0; k < kJoints; ++k) sums[k] = load(patterns.sum + k * kLanes);
    for (int64_t v = 0; v < vectors; v += kJoints) {
#pragma GCC unroll 32
      for (int k = 0; k < kJoints; ++k) {
        const int64_t at = (v + k) * kLanes;
        step(difference(p + at, t, at), kGrad ? grad + at : nullptr, load(scales + k * kLanes), sums[k]);
      }
    }
    for (int k = 0; k < kJoints; ++k) store(patterns.sum + k * kLanes, sums[k]);
  }

  // n elements of one map from the start of a row, with the target gy * gx (gx null: zero). Four sums, which stay in
  // registers from row to row, hide each other's latency.
  HPE_SIMD void run_one(const T* p, const R* gx, R gy, T* grad, Vec scale, int64_t n, Vec (&sums)[4]) {
    const Vec factor = splat<Vec>(gy);
    int64_t at = 0;
    for (; at + 4 * kLanes <= n; at += 4 * kLanes) {
      for (int i = 0; i < 4; ++i) {
        const int64_t here = at + i * kLanes;
        step(gx ? load(p + here) - factor * load(gx + here) : load(p + here), kGrad ? grad + here : nullptr, scale,
             sums[i]);
      }
    }
    for (; at + kLanes <= n; at += kLanes) {
      step(gx ? load(p + at) - factor * load(gx + at) : load(p + at), kGrad ? grad + at : nullptr, scale, sums[0]);
    }
    if (at == n) return;
    const Vec d = load_partial(p + at, n - at);
    const Vec rest = gx ? d - factor * load_partial(gx + at, n - at) : d;
    if (kSum) sums[0] = mul_add(rest, rest, sums[0]);
    if (kGrad) store_partial(grad + at, scale * rest, n - at);
  }

  static void tail(const T* p, const R* t, T* grad, const Patterns<R>& patterns, int64_t joints, int64_t n) {
    const int64_t at = n / kLanes * kLanes, count = n - at, k = n / kLanes % joints * kLanes;
    Vec d = load_partial(p + at, count);
    if (t) d -= load_partial(t + at, count);
    if (kSum) store(patterns.sum + k, mul_add(d, d, load(patterns.sum + k)));
    if (kGrad) store_partial(grad + at, load(patterns.scale + k) * d, count);
  }

  static void set_scales(const LossTask& task, int64_t item, const AxisTables<R>& tables, const Patterns<R>& patterns) {
    const int64_t joints = task.interleaved();
    for (int64_t j = 0; j < joints; ++j) {
      double scale = task.grad_scale * tables.joint[j].target.weight;
      if (task.grad_out) scale *= static_cast<const R*>(task.grad_out)[task.grad_per_joint ? item * joints + j : 0];
      for (int i = 0; i < kLanes; ++i) patterns.scale[i * joints + j] = static_cast<R>(scale);
    }
  }

  static void store_sums(const LossTask& task, int64_t item, const AxisTables<R>& tables, const Patterns<R>& patterns) {
    const int64_t joints = task.interleaved();
    const double pixels = static_cast<double>(task.maps.height) * task.maps.width;
    for (int64_t j = 0; j < joints; ++j) {
      double sum = 0;
      for (int i = 0; i < kLanes; ++i) sum += patterns.sum[i * joints + j];
      static_cast<R*>(task.per_joint)[item * joints + j] =
          static_cast<R>(tables.joint[j].target.weight * (sum / pixels));
    }
  }

  static void one_map(const LossTask& task, const T* p, T* grad, const JointTarget<R>& joint,
                      const Patterns<R>& patterns) {
    const int64_t width = task.maps.width, first = joint.target.y0 * width, last = joint.target.y1 * width;
    const int64_t end = task.maps.height * width;
    const Vec scale = load(patterns.scale);
    Vec sums[4] = {};
    run_one(p, nullptr, 0, grad, scale, first, sums);
    for (int64_t at = first, y = joint.target.y0; at < last; at += width, ++y) {
      run_one(p + at, joint.x, joint.y[y], grad + at, scale, width, sums);
    }
    run_one(p + last, nullptr, 0, grad + last, scale, end - last, sums);
    store(patterns.sum, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  }

  template <int kJoints>
  static void interleaved_maps(const LossTask& task, const T* map, T* grad, const AxisTables<R>& tables,
                               const Patterns<R>& patterns) {
    const int64_t joints = task.interleaved(), row_elements = task.maps.width * joints;
    // What a joint drew in a row is overwritten in the next, and erased after its last: fewer stores than to clear
    // rows.
    R* const row = patterns.row;
    for (int64_t y = 0; y < task.maps.height; ++y) {
      const int64_t at = y * row_elements;
      tables.each_pixel(y, task, [&](int64_t i, R value, bool) { row[i] = value; });
      run<kJoints>(map + at, tables.reached[y] ? row : nullptr, grad + at, patterns, joints, row_elements);
      tables.each_pixel(y, task, [&](int64_t i, R, bool last_row) {
        if (last_row) row[i] = 0;
      });
    }
  }

  static void one_item(const LossTask& task, int64_t item, const AxisTables<R>& tables, const Patterns<R>& patterns) {
    const T* map = static_cast<const T*>(task.heatmaps) + item * task.item_elements();
    T* grad = kGrad ? static_cast<T*>(task.grad) + item * task.item_elements() : nullptr;
    if (task.maps.channels_last) {
      const auto maps = task.maps.joints == 17 ? interleaved_maps<17> : interleaved_maps<0>;  // Human3.6M's, and COCO's
      return maps(task, map, grad, tables, patterns);
    }
    one_map(task, map, grad, tables.joint[0], patterns);
  }

  static void items(const LossTask& task, int64_t first, int64_t last, void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    AxisTables<R> tables(arena, task);
    const Patterns<R> patterns(arena, task, kLanes);
    tables.prepare(task.codec);
    tables.write_zeros(patterns.row, task.maps.width * task.interleaved());
    for (int64_t item = first; item < last; ++item) {
      tables.set_item(task, item);
      if (kGrad) set_scales(task, item, tables, patterns);
      if (kSum) memset(patterns.sum, 0, task.interleaved() * kLanes * sizeof(R));
      one_item(task, item, tables, patterns);
      if (kSum) store_sums(task, item, tables, patterns);
    }
  }
};

}  // namespace

size_t loss_scratch(const LossTask& task) {
  Arena arena{nullptr};
  AxisTables<double>(arena, task);
  Patterns<double>(arena, task, kLanes);
  return arena.used;
}

void loss_items(const void* pointer, int64_t first, int64_t last, void* scratch) {
  const LossTask& task = *static_cast<const LossTask*>(pointer);
  dispatch(task.maps.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (!task.grad) return Loss<T, true, false>::items(task, first, last, scratch);
    if (!task.per_joint) return Loss<T, false, true>::items(task, first, last, scratch);
    Loss<T, true, true>::items(task, first, last, scratch);
  });
}

}  // namespace HPE_ISA
}  // namespace cpu
}  // namespace hpe
