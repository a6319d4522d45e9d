// What the public functions (dispatch.cpp) hand to the kernels, which exist once per instruction set.
#pragma once

#include "../kernels.h"
#include "threads.h"

namespace hpe {
namespace cpu {

// An item is one map, [H, W] at (b, j), in NCHW and one sample, [H, W, J], in NHWC: J interleaved maps. NCHW is the
// case of one interleaved map.
struct MapTask {
  Maps maps;
  Codec codec;
  const float* keypoints;  // [B, J, 2]
  const float* weights;    // [B, J] or null

  int64_t interleaved() const { return maps.channels_last ? maps.joints : 1; }
  int64_t items() const { return maps.channels_last ? maps.batch : maps.batch * maps.joints; }
  int64_t item_elements() const { return maps.height * maps.width * interleaved(); }
};

struct RenderTask : MapTask {
  void* heatmaps;  // [B, J, H, W] out
};

struct LossTask : MapTask {
  const void* heatmaps;  // [B, J, H, W]
  void* per_joint;       // [B, J] out, or null
  void* grad;            // [B, J, H, W] out, or null
  const void* grad_out;  // what grad is scaled by, [B, J] or []; null for ones
  bool grad_per_joint;
  double grad_scale;  // the same for all maps, with the loss's denominator
};

struct DecodeTask : MapTask {
  float* coords;          // [B, J, 2] out
  float* scores;          // [B, J] out
  const void* heatmaps;   // [B, J, H, W]
  const void* flipped;    // [B, J, H, W] or null
  const float* to_image;  // [B, 2, 3] or null
  DecodeOptions options;
};

struct PrepareTask {
  void* out;                  // [B, H, W, 3]
  const uint8_t* images;      // [B, H, W, 3]
  const float* color;         // [B, 3, 4] or null
  const float* noise_std;     // [B] or null
  const int64_t* sample_ids;  // [B]
  Images desc;
  int64_t chunks;  // an item is one of so many equal pieces of an image
};

#define HPE_CPU_KERNELS(ISA)                                                                              \
  namespace ISA {                                                                                         \
  void render_items(const void* task, int64_t first, int64_t last, void* scratch);                        \
  void loss_items(const void* task, int64_t first, int64_t last, void* scratch);                          \
  void decode_items(const void* task, int64_t first, int64_t last, void* scratch);                        \
  void prepare_items(const void* task, int64_t first, int64_t last, void* scratch);                       \
  size_t render_scratch(const RenderTask& task); /* bytes that render_items needs for one thread, etc. */ \
  size_t loss_scratch(const LossTask& task);                                                              \
  size_t decode_scratch(const DecodeTask& task);                                                          \
  }

HPE_CPU_KERNELS(portable)
#ifdef HPE_X86_KERNELS
HPE_CPU_KERNELS(avx2)
HPE_CPU_KERNELS(avx512)
#endif

}  // namespace cpu
}  // namespace hpe
