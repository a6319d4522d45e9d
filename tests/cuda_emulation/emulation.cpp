// Runs the grids of cuda_runtime.h beside this, and gives the kernels plain C names for ctypes.
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "../../csrc/kernels.h"
#include "../../csrc/noise.h"
#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace hpe {
namespace cuda {
constexpr size_t kSharedBytes = 96 << 10;
alignas(16) float shared_memory[kSharedBytes / sizeof(float)];
}  // namespace cuda
}  // namespace hpe

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 << 10;

// Threads that wait for each other; the last to arrive lets all of them go.
struct Barrier {
  unsigned arrived = 0, generation = 0;
};

struct Fiber {
  ucontext_t context;
  bool done = false;
};

std::mt19937 order_source;
std::unique_ptr<char[]> stacks(new char[kMaxThreads * kStackBytes]);
Fiber fibers[kMaxThreads];
Barrier block_barrier, warp_barriers[kMaxThreads / kWarp];
ucontext_t scheduler;
const std::function<void()>* kernel_thread;
bool progress;

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulation: %s\n", message);
  std::abort();
}

void wait(Barrier& barrier, unsigned expected) {
  const dim3 me = threadIdx;
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0, ++barrier.generation, progress = true;
    return;
  }
  while (barrier.generation == generation) swapcontext(&fibers[me.x].context, &scheduler);
}

void enter_fiber() {
  Fiber& fiber = fibers[threadIdx.x];
  (*kernel_thread)();
  fiber.done = progress = true;
}

void start_fiber(unsigned index) {
  Fiber& fiber = fibers[index];
  fiber.done = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stacks.get() + index * kStackBytes;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, enter_fiber, 0);
}

void run_block(unsigned threads, const std::vector<unsigned>& order) {
  block_barrier = {};
  std::fill(std::begin(warp_barriers), std::end(warp_barriers), Barrier{});
  for (unsigned i = 0; i < threads; ++i) start_fiber(i);
  for (unsigned alive = threads; alive > 0;) {
    progress = false;
    for (unsigned i : order) {
      if (fibers[i].done) continue;
      threadIdx = dim3(i, 0, 0);
      swapcontext(&scheduler, &fibers[i].context);
      alive -= fibers[i].done;
    }
    if (!progress) fail("a barrier that some threads never reach");
  }
}

}  // namespace

uint64_t exchanged[kMaxThreads];

void wait_for_block() { wait(block_barrier, blockDim.x); }

void wait_for_warp() { wait(warp_barriers[threadIdx.x / kWarp], kWarp); }

void run_grid(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  char* const shared = reinterpret_cast<char*>(hpe::cuda::shared_memory);
  const size_t used = config.dynamicSmemBytes, unused = hpe::cuda::kSharedBytes - used;
  gridDim = config.gridDim, blockDim = config.blockDim, kernel_thread = &thread;
  if (blockDim.x % kWarp != 0 || blockDim.x > kMaxThreads || gridDim.y > 65535) fail("a bad launch configuration");
  std::vector<unsigned> order(blockDim.x);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), order_source);
  for (unsigned block = 0; block < gridDim.x * gridDim.y; ++block) {
    blockIdx = dim3(block % gridDim.x, block / gridDim.x, 0);
    std::memset(shared, 0xff, hpe::cuda::kSharedBytes);
    ASAN_POISON_MEMORY_REGION(shared + used, unused);
    run_block(blockDim.x, order);
    ASAN_UNPOISON_MEMORY_REGION(shared + used, unused);
    if (std::any_of(shared + used, shared + used + unused, [](char c) { return c != '\xff'; })) {
      fail("a write beyond the block's shared memory");
    }
  }
}

}  // namespace emulation

extern "C" {

void set_order(unsigned seed) { emulation::order_source.seed(seed); }

int render_heatmaps(void* heatmaps, const float* keypoints, const float* weights, const hpe::Maps* maps,
                    const hpe::Codec* codec) {
  return hpe::cuda::render_heatmaps(heatmaps, keypoints, weights, *maps, *codec, nullptr);
}

int heatmap_mse(void* per_joint, void* loss, const void* heatmaps, const float* keypoints, const float* weights,
                const hpe::Maps* maps, const hpe::Codec* codec) {
  return hpe::cuda::heatmap_mse(per_joint, loss, heatmaps, keypoints, weights, *maps, *codec, nullptr);
}

int heatmap_mse_backward(void* grad, const void* grad_out, const void* heatmaps, const float* keypoints,
                         const float* weights, int per_joint, const hpe::Maps* maps, const hpe::Codec* codec) {
  return hpe::cuda::heatmap_mse_backward(grad, grad_out, heatmaps, keypoints, weights, per_joint != 0, *maps, *codec,
                                         nullptr);
}

int heatmap_mse_and_grad(void* per_joint, void* loss, void* grad, const void* heatmaps, const float* keypoints,
                         const float* weights, float grad_scale, const hpe::Maps* maps, const hpe::Codec* codec) {
  return hpe::cuda::heatmap_mse_and_grad(per_joint, loss, grad, heatmaps, keypoints, weights, grad_scale, *maps, *codec,
                                         nullptr);
}

int decode_heatmaps(float* coords, float* scores, const void* heatmaps, const void* flipped, const float* to_image,
                    const hpe::DecodeOptions* options, const hpe::Maps* maps, const hpe::Codec* codec) {
  return hpe::cuda::decode_heatmaps(coords, scores, heatmaps, flipped, to_image, *options, *maps, *codec, nullptr);
}

int prepare_images(void* out, const uint8_t* images, const float* color, const float* noise_std,
                   const int64_t* sample_ids, const hpe::Images* desc) {
  return hpe::cuda::prepare_images(out, images, color, noise_std, sample_ids, *desc, nullptr);
}

// The normals themselves, from the host's compilation of csrc/noise.h.
void noise(float* out, uint64_t seed, uint64_t sample, int64_t counters) {
  for (int64_t i = 0; i < counters; ++i) {
    float four[4];
    hpe::normals<hpe::ScalarOps>(static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), sample, seed, four);
    std::memcpy(out + 4 * i, four, sizeof four);
  }
}
}
