// The targets of one item as axis tables: one short table of the Gaussian per joint and axis, no exponential per pixel.
#pragma once

#include <initializer_list>

#include "simd.h"
#include "tasks.h"

namespace hpe {
namespace cpu {
namespace HPE_ISA {

// Hands out pieces of a thread's scratch, each aligned for vectors; with a null start it only counts the bytes.
struct Arena {
  char* next;
  size_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* piece = next ? reinterpret_cast<T*>(next + used) : nullptr;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
};

// A rounded centre on a map of up to so many pixels and one a side has its tables ready: they are pieces of one that is
// computed once.
constexpr int kReach = 127;

template <class R>
struct JointTarget {
  Target target;
  const R* x;  // [W] Gaussian along x, zero outside the support
  const R* y;  // [H] amplitude times the Gaussian along y, zero outside the support
};

template <class R>
struct AxisTables {
  R* whole;               // [2 * kReach + 1] Gaussian at whole distances, -kReach first, zero outside the window
  R* whole_amplitude;     // the same times the amplitude
  R* values;              // [J, W + H]
  JointTarget<R>* joint;  // [J] of the item
  int32_t* reached;       // [H] how many of them reach a row
  int32_t* reaching;      // [H, J] which ones, first `reached` of a row

  AxisTables(Arena& arena, const MapTask& task)
      : whole(arena.take<R>(2 * kReach + 1)),
        whole_amplitude(arena.take<R>(2 * kReach + 1)),
        values(arena.take<R>(task.interleaved() * (task.maps.width + task.maps.height))),
        joint(arena.take<JointTarget<R>>(task.interleaved())),
        reached(arena.take<int32_t>(task.maps.height)),
        reaching(arena.take<int32_t>(task.maps.height * task.interleaved())) {}

  static float inv_two_variance(const Codec& codec) { return 1.0f / (2.0f * codec.sigma * codec.sigma); }

  void prepare(const Codec& codec) {
    const int reach = codec.radius < 0 || codec.radius > kReach ? kReach : codec.radius;
    for (R* table : {whole, whole_amplitude}) write_zeros(table, 2 * kReach + 1);
    for (int d = 0; d <= reach; ++d) {
      const R value = axis_value(static_cast<float>(d), inv_two_variance(codec));
      whole[kReach - d] = whole[kReach + d] = value;
      whole_amplitude[kReach - d] = whole_amplitude[kReach + d] = codec.amplitude * value;
    }
  }

  // The Gaussian at pixels 0..size-1, zero outside [first, last): a piece of `ready` (`whole`, or times the amplitude),
  // else `out`, filled.
  const R* axis(R* out, int size, int first, int last, float centre, const R* ready, R amplitude,
                const Codec& codec) const {
    const int c = static_cast<int>(centre);
    if (codec.rounding != Rounding::kNone && c <= kReach && size - 1 - c <= kReach) return ready + (kReach - c);
    write_zeros(out, size);
    for (int i = first; i < last; ++i) {
      out[i] = amplitude * axis_value(static_cast<float>(i) - centre, inv_two_variance(codec));
    }
    return out;
  }

  // Fills `joint` with the targets of an item.
  void set_item(const MapTask& task, int64_t item) {
    const int width = static_cast<int>(task.maps.width), height = static_cast<int>(task.maps.height);
    R* next = values;
    write_zeros(reached, height);
    for (int64_t j = 0; j < task.interleaved(); ++j) {
      const int64_t at = item * task.interleaved() + j;
      const Target t = make_target(task.keypoints[2 * at], task.keypoints[2 * at + 1],
                                   task.weights ? task.weights[at] : 1.0f, task.codec, width, height);
      joint[j] = {t, axis(next, width, t.x0, t.x1, t.cx, whole, 1, task.codec),
                  axis(next + width, height, t.y0, t.y1, t.cy, whole_amplitude, task.codec.amplitude, task.codec)};
      for (int64_t y = t.y0; y < t.y1; ++y) reaching[y * task.interleaved() + reached[y]++] = static_cast<int32_t>(j);
      next += width + height;
    }
  }

  // How many rows from y on no joint reaches.
  int64_t empty_rows(int64_t y, const MapTask& task) const {
    int64_t end = y;
    while (end < task.maps.height && reached[end] == 0) ++end;
    return end - y;
  }

  // Writes row y of the item, [W, J], as elements of type T.
  template <class T>
  void write_row(T* row, int64_t y, const MapTask& task) const {
    if (task.interleaved() == 1) return write_product(row, joint[0].x, joint[0].y[y], task.maps.width);
    write_zeros(row, task.maps.width * task.interleaved());
    each_pixel(y, task, [&](int64_t at, R value, bool) { from_float(value, row[at]); });
  }

  // Calls `use(element of the row, value, whether this is the joint's last row)` wherever a joint draws in row y.
  template <class Use>
  void each_pixel(int64_t y, const MapTask& task, const Use& use) const {
    const int64_t joints = task.interleaved();
    for (int64_t i = 0; i < reached[y]; ++i) {
      const int64_t j = reaching[y * joints + i];
      const Target& t = joint[j].target;
      const R gy = joint[j].y[y];
      for (int x = t.x0; x < t.x1; ++x) use(x * joints + j, gy * joint[j].x[x], y + 1 == t.y1);
    }
  }

  template <class T>
  static void write_zeros(T* out, int64_t n) {
    constexpr int kStep = kBytes / sizeof(T);
    const VecF zeros{};
    int64_t i = 0;
    for (; i + kStep <= n; i += kStep) memcpy(out + i, &zeros, sizeof zeros);
    for (; i < n; ++i) out[i] = T{};
  }

  template <class T>
  static void write_product(T* row, const R* gx, R gy, int64_t width) {
    constexpr int kStep = Arithmetic<T>::kLanes;
    const auto factor = splat<typename Arithmetic<T>::Vec>(gy);
    int64_t x = 0;
    for (; x + kStep <= width; x += kStep) store(row + x, factor * load(gx + x));
    if (x < width) store_partial(row + x, factor * load_partial(gx + x, width - x), width - x);
  }
};

}  // namespace HPE_ISA
}  // namespace cpu
}  // namespace hpe
