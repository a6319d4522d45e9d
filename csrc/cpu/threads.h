// Threads of the CPU kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hpe {
namespace cpu {

// Works on items [first, last) of `task`; `scratch` belongs to this call alone and is aligned for any vector.
using Body = void (*)(const void* task, int64_t first, int64_t last, void* scratch);

// Runs `body` over disjoint ranges that together cover [0, items). What an item computes must not depend on its range:
// then results are the same bits for any number of threads. Work below some tens of kilobytes stays on this thread.
void parallel_for(int64_t items, int64_t bytes_per_item, size_t scratch_bytes, Body body, const void* task);

}  // namespace cpu
}  // namespace hpe
