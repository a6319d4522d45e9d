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
  R* row;    // [W, J] target of one row

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

  // One vector: sum += (p - t)^2, grad = scale * (p - t).
  HPE_SIMD void step(const T* p, const R* t, T* grad, Vec scale, Vec& sum) {
    Vec d = load(p);
    if (t) d -= load(t);
    if (kSum) sum = mul_add(d, d, sum);
    if (kGrad) store(grad, scale * d);
  }

  // n elements from the start of a row, with their targets t (null: all zero, so p is read and nothing else).
  HPE_SIMD void run(const T* p, const R* t, T* grad, const Patterns<R>& patterns, int64_t joints, int64_t n) {
    if (joints == 1) return run_one(p, t, grad, patterns, n);
    const int64_t vectors = n / kLanes;
    const R* const scales = patterns.scale;  // copies, which the compiler knows that no store changes
    R* const sums = patterns.sum;
    for (int64_t v = 0; v < vectors; v += joints) {
      const int64_t count = vectors - v < joints ? vectors - v : joints;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t at = (v + k) * kLanes;
        Vec sum = kSum ? load(sums + k * kLanes) : Vec{};
        step(p + at, t ? t + at : nullptr, kGrad ? grad + at : nullptr, load(scales + k * kLanes), sum);
        if (kSum) store(sums + k * kLanes, sum);
      }
    }
    if (n % kLanes) tail(p, t, grad, patterns, joints, n);
  }

  // The same where one scale and one sum serve all vectors: they stay in registers, four sums to hide their latency.
  HPE_SIMD void run_one(const T* p, const R* t, T* grad, const Patterns<R>& patterns, int64_t n) {
    const Vec scale = load(patterns.scale);
    Vec sums[4] = {load(patterns.sum), Vec{}, Vec{}, Vec{}};
    int64_t at = 0;
    for (; at + 4 * kLanes <= n; at += 4 * kLanes) {
      for (int i = 0; i < 4; ++i) {
        const int64_t here = at + i * kLanes;
        step(p + here, t ? t + here : nullptr, kGrad ? grad + here : nullptr, scale, sums[i]);
      }
    }
    for (; at + kLanes <= n; at += kLanes) {
      step(p + at, t ? t + at : nullptr, kGrad ? grad + at : nullptr, scale, sums[0]);
    }
    store(patterns.sum, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    if (n % kLanes) tail(p, t, grad, patterns, 1, n);
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

  static void one_item(const LossTask& task, int64_t item, const AxisTables<R>& tables, const Patterns<R>& patterns) {
    const int64_t joints = task.interleaved(), row_elements = task.maps.width * joints;
    const T* map = static_cast<const T*>(task.heatmaps) + item * task.item_elements();
    T* grad = kGrad ? static_cast<T*>(task.grad) + item * task.item_elements() : nullptr;
    for (int64_t y = 0; y < task.maps.height;) {
      const int64_t at = y * row_elements;
      int64_t rows = tables.empty_rows(y, task);
      if (rows > 0) {
        run(map + at, nullptr, grad + at, patterns, joints, rows * row_elements);
      } else {
        rows = 1;
        tables.write_row(patterns.row, y, task);
        run(map + at, patterns.row, grad + at, patterns, joints, row_elements);
      }
      y += rows;
    }
  }

  static void items(const LossTask& task, int64_t first, int64_t last, void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    AxisTables<R> tables(arena, task);
    const Patterns<R> patterns(arena, task, kLanes);
    tables.prepare(task.codec);
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
