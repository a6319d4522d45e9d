// Every kernel of hpe_fast: raw pointers, sizes, layout, stream. Nothing here knows a framework; outputs and workspaces
// are allocated by the caller. `cpu::` and `cuda::` hold the same functions under the same names (bodies in cpu/*.cpp
// and cuda/*.cu, written to be read side by side). A CUDA function returns cudaGetLastError() as an int; 0 is success,
// and cudaErrorInvalidValue what no kernel takes: maps of over 2^30 pixels, or whose sides add up to over about 16,000,
// since the tables of both axes have to fit a block's shared memory. Empty maps return at once, with nothing written.
//
// Conventions: index coordinates (the centre of the top-left pixel is (0, 0)), x before y, offsets in 64 bits.
#pragma once

#include <cstdint>

namespace hpe {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3 };  // kFloat64 on the CPU only

enum class Rounding : int { kNone = 0, kFloor = 1, kNearest = 2 };  // kNearest: truncation of x + 0.5 toward zero

enum class Refine : int { kNone = 0, kQuarter = 1, kDark = 2 };

// What a target heatmap is; see target.h for its definition.
struct Codec {
  float sigma;        // standard deviation, heatmap pixels
  float amplitude;    // value at the centre
  int radius;         // half-width of the square window, heatmap pixels; < 0: the whole map
  Rounding rounding;  // of the centre
  float stride_x;     // network-input pixels per heatmap pixel
  float stride_y;
};

// Heatmaps [B, J, H, W], dense in one of two memory formats.
struct Maps {
  int64_t batch, joints, height, width;
  bool channels_last;  // false: offset ((b*J + j)*H + y)*W + x; true: ((b*H + y)*W + x)*J + j
  DType dtype;
};

// Largest step of dark's refinement, heatmap pixels: its stencil reaches so far, and knows nothing of what lies beyond.
constexpr int kDarkReach = 2;
constexpr int kMaxFlipJoints = 256;  // flip_permutation travels to a CUDA kernel by value

struct DecodeOptions {
  Refine refine;
  bool shift_flipped;               // the official code's one-pixel shift of the flipped map (SHIFT_HEATMAP)
  const int32_t* flip_permutation;  // [J] host memory; joint j of the mirrored picture is joint permutation[j]; unused
                                    // without `flipped`
};

struct Images {
  int64_t batch, height, width;  // [B, H, W, 3], dense
  DType dtype;                   // of the output: float32, float16 or bfloat16
  uint64_t seed;
  float mean[3], inv_std[3];  // out = (value / 255 + noise - mean) * inv_std
};

#define HPE_KERNELS(RETURN, STREAM)                                                                                    \
  RETURN render_heatmaps(void* heatmaps,         /* [B, J, H, W] out */                                                \
                         const float* keypoints, /* [B, J, 2] network-input pixels; NaN counts as weight 0 */          \
                         const float* weights,   /* [B, J] or null for ones */                                         \
                         Maps maps, Codec codec STREAM);                                                               \
                                                                                                                       \
  /* loss[b, j] = mean over y, x of w * (p - t)^2, and its mean over b, j. */                                          \
  RETURN heatmap_mse(void* per_joint,        /* [B, J] out; float, double where maps.dtype is float64 */               \
                     void* loss,             /* [] out, same type, mean of per_joint; null: not wanted */              \
                     const void* heatmaps,   /* [B, J, H, W] */                                                        \
                     const float* keypoints, /* [B, J, 2] */                                                           \
                     const float* weights,   /* [B, J] or null */                                                      \
                     Maps maps, Codec codec STREAM);                                                                   \
                                                                                                                       \
  /* grad = grad_out * d loss / d heatmaps; the denominator is H*W (per_joint) or B*J*H*W. */                          \
  RETURN heatmap_mse_backward(void* grad,             /* [B, J, H, W] out, dtype and format of heatmaps */             \
                              const void* grad_out,   /* [B, J] (per_joint) or []; float or double as above */         \
                              const void* heatmaps,   /* [B, J, H, W] */                                               \
                              const float* keypoints, /* [B, J, 2] */                                                  \
                              const float* weights,   /* [B, J] or null */                                             \
                              bool per_joint, Maps maps, Codec codec STREAM);                                          \
                                                                                                                       \
  /* Both in one pass: read heatmaps once, write grad once (grad_scale times the gradient of the scalar loss). */      \
  RETURN heatmap_mse_and_grad(void* per_joint,        /* [B, J] out */                                                 \
                              void* loss,             /* [] out */                                                     \
                              void* grad,             /* [B, J, H, W] out */                                           \
                              const void* heatmaps,   /* [B, J, H, W] */                                               \
                              const float* keypoints, /* [B, J, 2] */                                                  \
                              const float* weights,   /* [B, J] or null */                                             \
                              float grad_scale, Maps maps, Codec codec STREAM);                                        \
                                                                                                                       \
  /* Argmax (first maximum wins, NaN ignored), score, refinement, flip-test average, affine back to the image. */      \
  RETURN decode_heatmaps(float* coords,         /* [B, J, 2] out: network-input pixels, or image pixels by to_image */ \
                         float* scores,         /* [B, J] out: the maximum */                                          \
                         const void* heatmaps,  /* [B, J, H, W] */                                                     \
                         const void* flipped,   /* [B, J, H, W] heatmaps of the mirrored pictures, same dtype and      \
                                                   format, or null */                                                  \
                         const float* to_image, /* [B, 2, 3] or null */                                                \
                         DecodeOptions options, Maps maps, Codec codec STREAM);                                        \
                                                                                                                       \
  /* uint8 [B, H, W, 3] -> normalised; value = clamp(color * (r, g, b, 1), 0, 255), noise = noise_std * N(0, 1). */    \
  RETURN prepare_images(void* out,                 /* [B, H, W, 3] out (the memory of a channels_last [B, 3, H, W]) */ \
                        const uint8_t* images,     /* [B, H, W, 3] */                                                  \
                        const float* color,        /* [B, 3, 4] on the 0..255 scale, or null for the identity */       \
                        const float* noise_std,    /* [B] in units of the 0..1 scale, or null for none */              \
                        const int64_t* sample_ids, /* [B]; keys the noise together with images.seed */                 \
                        Images images_desc STREAM);

#define HPE_NO_STREAM
#define HPE_STREAM , void* stream  // a cudaStream_t

namespace cpu {
HPE_KERNELS(void, HPE_NO_STREAM)
void set_num_threads(int threads);  // used by every kernel; the caller passes torch.get_num_threads()
const char* simd();                 // "avx512", "avx2" or "portable": what the kernels chose at run time
}  // namespace cpu

namespace cuda {
HPE_KERNELS(int, HPE_STREAM)
const char* error_string(int error);
}  // namespace cuda

#undef HPE_KERNELS
#undef HPE_NO_STREAM
#undef HPE_STREAM

}  // namespace hpe
