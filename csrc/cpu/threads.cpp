#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "../kernels.h"

namespace hpe {
namespace cpu {
namespace {

constexpr int64_t kInlineBytes = 64 << 10;  // a smaller piece of work costs less than waking a thread for it
constexpr size_t kAlignment = 64;
constexpr int64_t kSlotsPerThread = 4;  // finer than one range a thread: a core that is busy elsewhere delays less

thread_local int num_threads = 1;

// One call of parallel_for, shared by its threads: whoever is free takes the next slot.
struct Job {
  Body body;
  const void* task;
  int64_t items, slots;
  std::byte* scratch;  // [threads, scratch_bytes]
  size_t scratch_bytes;
  std::atomic<int64_t> next_slot{0}, next_worker{0};

  void work() noexcept {
    void* own = scratch + next_worker.fetch_add(1, std::memory_order_relaxed) * scratch_bytes;
    for (;;) {
      const int64_t slot = next_slot.fetch_add(1, std::memory_order_relaxed);
      if (slot >= slots) return;
      body(task, items * slot / slots, items * (slot + 1) / slots, own);
    }
  }
};

void work_on(void* job) { static_cast<Job*>(job)->work(); }

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// The OpenMP runtime that torch has loaded, or null. Linking one here would add a second pool of threads that spins on
// the same cores. (dlsym on a handle searches its dependencies, so this finds torch's own copy whatever it is called.)
GompParallel find_gomp_parallel() {
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  return torch ? reinterpret_cast<GompParallel>(dlsym(torch, "GOMP_parallel")) : nullptr;
}

// A forked child inherits the pool's bookkeeping but not its threads, and would wait for them for ever.
std::atomic<bool> pool_lost{false};

GompParallel gomp_parallel() {
  static const GompParallel found = [] {
    pthread_atfork(nullptr, nullptr, [] { pool_lost = true; });
    return find_gomp_parallel();
  }();
  return pool_lost ? nullptr : found;
}

void run_on_own_threads(Job& job, int threads) {
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (int i = 1; i < threads; ++i) others.emplace_back(work_on, &job);
  } catch (const std::system_error&) {  // no more threads to be had: those there are do the work
  }
  job.work();
  for (std::thread& other : others) other.join();
}

struct AlignedDelete {
  void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }
};

}  // namespace

void set_num_threads(int threads) { num_threads = std::max(threads, 1); }

void parallel_for(int64_t items, int64_t bytes_per_item, size_t scratch_bytes, Body body, const void* task) {
  const int64_t worthwhile = items * bytes_per_item / kInlineBytes;
  const int threads = static_cast<int>(std::max<int64_t>(1, std::min({int64_t{num_threads}, items, worthwhile})));
  scratch_bytes = (scratch_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const std::unique_ptr<std::byte, AlignedDelete> scratch(
      static_cast<std::byte*>(::operator new(threads * scratch_bytes + kAlignment, std::align_val_t(kAlignment))));
  if (threads == 1) return body(task, 0, items, scratch.get());
  Job job{body, task, items, std::min(items, threads * kSlotsPerThread), scratch.get(), scratch_bytes};
  if (const GompParallel parallel = gomp_parallel()) {
    parallel(work_on, &job, static_cast<unsigned>(threads), 0);
  } else {
    run_on_own_threads(job, threads);
  }
}

}  // namespace cpu
}  // namespace hpe
