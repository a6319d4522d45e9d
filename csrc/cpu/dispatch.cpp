// The public CPU functions: they describe the work, choose the instruction set and share the items among threads.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tasks.h"

namespace hpe {
namespace cpu {
namespace {

struct Kernels {
  const char* name;
  Body render, loss, decode, prepare;
  size_t (*render_scratch)(const RenderTask&);
  size_t (*loss_scratch)(const LossTask&);
  size_t (*decode_scratch)(const DecodeTask&);
};

#define HPE_TABLE(ISA)  \
  {#ISA,                \
   ISA::render_items,   \
   ISA::loss_items,     \
   ISA::decode_items,   \
   ISA::prepare_items,  \
   ISA::render_scratch, \
   ISA::loss_scratch,   \
   ISA::decode_scratch}

// The best set that the processor has. HPE_FAST_SIMD=avx2 or =portable caps the choice, which is how tests reach them;
// other values change nothing.
const Kernels& choose() {
  static constexpr Kernels portable_kernels = HPE_TABLE(portable);
#ifdef HPE_X86_KERNELS
  static constexpr Kernels avx2_kernels = HPE_TABLE(avx2), avx512_kernels = HPE_TABLE(avx512);
  const char* wanted = std::getenv("HPE_FAST_SIMD");
  const auto asked = [&](const char* name) { return wanted && !std::strcmp(wanted, name); };
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && !asked("avx2") && !asked("portable")) return avx512_kernels;
  if (has_avx2 && !asked("portable")) return avx2_kernels;
#endif
  return portable_kernels;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

template <class Task>
void run(const Task& task, Body body, size_t scratch_bytes) {
  parallel_for(task.items(), task.item_elements() * bytes_of(task.maps.dtype), scratch_bytes, body, &task);
}

template <class R>
void store_mean(void* loss, const void* per_joint, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<const R*>(per_joint)[i];
  *static_cast<R*>(loss) = static_cast<R>(sum / static_cast<double>(count));
}

void run_loss(const LossTask& task, void* loss) {
  run(task, kernels().loss, kernels().loss_scratch(task));
  if (!loss) return;
  const auto mean = task.maps.dtype == DType::kFloat64 ? store_mean<double> : store_mean<float>;
  mean(loss, task.per_joint, task.maps.batch * task.maps.joints);
}

double elements(const Maps& maps, bool one_map) {
  const double pixels = static_cast<double>(maps.height) * static_cast<double>(maps.width);
  return one_map ? pixels : pixels * static_cast<double>(maps.batch) * static_cast<double>(maps.joints);
}

}  // namespace

void render_heatmaps(void* heatmaps, const float* keypoints, const float* weights, Maps maps, Codec codec) {
  const RenderTask task{{maps, codec, keypoints, weights}, heatmaps};
  run(task, kernels().render, kernels().render_scratch(task));
}

void heatmap_mse(void* per_joint, void* loss, const void* heatmaps, const float* keypoints, const float* weights,
                 Maps maps, Codec codec) {
  run_loss({{maps, codec, keypoints, weights}, heatmaps, per_joint, nullptr, nullptr, false, 0.0}, loss);
}

void heatmap_mse_backward(void* grad, const void* grad_out, const void* heatmaps, const float* keypoints,
                          const float* weights, bool per_joint, Maps maps, Codec codec) {
  const double scale = 2.0 / elements(maps, per_joint);
  run_loss({{maps, codec, keypoints, weights}, heatmaps, nullptr, grad, grad_out, per_joint, scale}, nullptr);
}

void heatmap_mse_and_grad(void* per_joint, void* loss, void* grad, const void* heatmaps, const float* keypoints,
                          const float* weights, float grad_scale, Maps maps, Codec codec) {
  const double scale = 2.0 * grad_scale / elements(maps, false);
  run_loss({{maps, codec, keypoints, weights}, heatmaps, per_joint, grad, nullptr, false, scale}, loss);
}

void decode_heatmaps(float* coords, float* scores, const void* heatmaps, const void* flipped, const float* to_image,
                     DecodeOptions options, Maps maps, Codec codec) {
  const DecodeTask task{{maps, codec, nullptr, nullptr}, coords, scores, heatmaps, flipped, to_image, options};
  run(task, kernels().decode, kernels().decode_scratch(task));
}

void prepare_images(void* out, const uint8_t* images, const float* color, const float* noise_std,
                    const int64_t* sample_ids, Images images_desc) {
  constexpr int64_t kChunk = 64 << 10;  // elements: small enough to share one large image among threads
  const int64_t elements = images_desc.height * images_desc.width * 3;
  const int64_t chunks = std::max<int64_t>(1, elements / kChunk);
  const PrepareTask task{out, images, color, noise_std, sample_ids, images_desc, chunks};
  parallel_for(images_desc.batch * chunks, elements / chunks * 5, 0, kernels().prepare, &task);
}

const char* simd() { return kernels().name; }

}  // namespace cpu
}  // namespace hpe
