#include "axes.h"

namespace hpe {
namespace cpu {
namespace HPE_ISA {
namespace {

template <class T>
void render(const RenderTask& task, int64_t first, int64_t last, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  AxisTables<typename Arithmetic<T>::Real> tables(arena, task);
  tables.prepare(task.codec);
  const int64_t row_elements = task.maps.width * task.interleaved();
  for (int64_t item = first; item < last; ++item) {
    tables.set_item(task, item);
    T* map = static_cast<T*>(task.heatmaps) + item * task.item_elements();
    for (int64_t y = 0; y < task.maps.height;) {
      const int64_t empty = tables.empty_rows(y, task);
      tables.write_zeros(map + y * row_elements, empty * row_elements);
      y += empty;
      if (y < task.maps.height) tables.write_row(map + y * row_elements, y, task), ++y;
    }
  }
}

}  // namespace

size_t render_scratch(const RenderTask& task) {
  Arena arena{nullptr};
  AxisTables<double>(arena, task);
  return arena.used;
}

void render_items(const void* pointer, int64_t first, int64_t last, void* scratch) {
  const RenderTask& task = *static_cast<const RenderTask*>(pointer);
  dispatch(task.maps.dtype, [&](auto zero) { render<decltype(zero)>(task, first, last, scratch); });
}

}  // namespace HPE_ISA
}  // namespace cpu
}  // namespace hpe
