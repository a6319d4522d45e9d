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

// One call of parallel_for, shared by its threads. Each begins with its own share of the slots, the same in every call,
// whose memory its core's caches may still hold; then it helps the others.
struct Job {
  Body body;
  const void* task;
  int64_t items, slots;
  std::byte* scratch;  // [threads, scratch_bytes]
  size_t scratch_bytes;
  std::vector<std::atomic<bool>> taken;  // [slots]

  void work(int worker, int threads) noexcept {
    const int64_t share = slots * worker / threads;
    for (int64_t i = 0; i < slots; ++i) {
      const int64_t slot = (share + i) % slots;
      if (taken[slot].exchange(true, std::memory_order_relaxed)) continue;
      body(task, items * slot / slots, items * (slot + 1) / slots, scratch + worker * scratch_bytes);
    }
  }
};

// The OpenMP runtime that torch has loaded. Linking one here would add a second pool of threads that spins on the same
// cores. (dlsym on a handle searches its dependencies, so this finds torch's own copy whatever it is called.)
struct Gomp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread)() = nullptr;   // number of the calling thread in its team
  int (*threads)() = nullptr;  // in the team: at most what was asked for

  Gomp() {
    void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!torch) return;
    parallel = reinterpret_cast<decltype(parallel)>(dlsym(torch, "GOMP_parallel"));
    thread = reinterpret_cast<decltype(thread)>(dlsym(torch, "omp_get_thread_num"));
    threads = reinterpret_cast<decltype(threads)>(dlsym(torch, "omp_get_num_threads"));
  }
  bool found() const { return parallel && thread && threads; }
};

// A forked child inherits the pool's bookkeeping but not its threads, and would wait for them for ever.
std::atomic<bool> pool_lost{false};
// From the loading of the module on: torch may have started the pool before our first parallel call.
[[maybe_unused]] const int fork_watch = pthread_atfork(nullptr, nullptr, [] { pool_lost = true; });

const Gomp& gomp() {
  static const Gomp runtime;
  return runtime;
}

void work_in_team(void* job) { static_cast<Job*>(job)->work(gomp().thread(), gomp().threads()); }

void run_on_own_threads(Job& job, int threads) {
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (int i = 1; i < threads; ++i) others.emplace_back(&Job::work, &job, i, threads);
  } catch (const std::system_error&) {  // no more threads to be had: those there are do the work
  }
  job.work(0, threads);
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
  const int64_t slots = std::min(items, threads * kSlotsPerThread);
  Job job{body, task, items, slots, scratch.get(), scratch_bytes, std::vector<std::atomic<bool>>(slots)};
  if (gomp().found() && !pool_lost) {
    gomp().parallel(work_in_team, &job, static_cast<unsigned>(threads), 0);
  } else {
    run_on_own_threads(job, threads);
  }
}

}  // namespace cpu
}  // namespace hpe
