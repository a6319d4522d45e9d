// The only file that knows pybind11: integers from Python become pointers, tuples become descriptors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

#ifdef HPE_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

namespace {

using Address = uintptr_t;                                                    // of host or device memory; 0 is null
using MapsTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, bool, int>;  // B, J, H, W, channels_last, dtype
using CodecArray = std::array<float, 6>;  // sigma, amplitude, radius, rounding, stride x, stride y
using ImagesTuple = std::tuple<int64_t, int64_t, int64_t, int, uint64_t>;  // B, H, W, dtype, seed
using Triple = std::array<float, 3>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

void require_pointers(std::initializer_list<Address> addresses) {
  for (Address address : addresses) require(address != 0, "_hpe_fast: null pointer");
}

hpe::Maps make_maps(const MapsTuple& t) {
  const auto [batch, joints, height, width, channels_last, dtype] = t;
  require(batch >= 0 && joints >= 0 && height >= 0 && width >= 0, "_hpe_fast: negative size");
  require(height < (1 << 24) && width < (1 << 24), "_hpe_fast: heatmaps beyond 2^24 pixels a side");
  require(dtype >= 0 && dtype <= 3, "_hpe_fast: unknown dtype code");
  return {batch, joints, height, width, channels_last, static_cast<hpe::DType>(dtype)};
}

bool empty(const hpe::Maps& maps) { return maps.batch * maps.joints * maps.height * maps.width == 0; }

hpe::Codec make_codec(const CodecArray& p) {
  require(p[3] >= 0 && p[3] <= 2, "_hpe_fast: unknown rounding code");
  return {p[0], p[1], static_cast<int>(p[2]), static_cast<hpe::Rounding>(static_cast<int>(p[3])), p[4], p[5]};
}

hpe::DecodeOptions make_options(int refine, bool shift, const std::vector<int32_t>& permutation, Address flipped,
                                const hpe::Maps& maps) {
  require(refine >= 0 && refine <= 2, "_hpe_fast: unknown refinement code");
  if (flipped) {
    require(static_cast<int64_t>(permutation.size()) == maps.joints && maps.joints <= hpe::kMaxFlipJoints,
            "_hpe_fast: the flip permutation needs one entry a joint, 256 at most");
    for (int32_t j : permutation) require(j >= 0 && j < maps.joints, "_hpe_fast: flip permutation out of range");
  }
  return {static_cast<hpe::Refine>(refine), shift, permutation.data()};
}

hpe::Images make_images(const ImagesTuple& t, const Triple& mean, const Triple& std) {
  const auto [batch, height, width, dtype, seed] = t;
  require(batch >= 0 && height >= 0 && width >= 0, "_hpe_fast: negative size");
  require(dtype >= 0 && dtype <= 2, "_hpe_fast: images come out as float32, float16 or bfloat16");
  hpe::Images images{batch, height, width, static_cast<hpe::DType>(dtype), seed, {}, {}};
  for (int c = 0; c < 3; ++c) images.mean[c] = mean[c], images.inv_std[c] = 1.0f / std[c];
  return images;
}

// A back end: the kernels of one namespace, and how one of them is run with the last arguments of its Python function.
struct Cpu {
  static constexpr auto render_heatmaps = hpe::cpu::render_heatmaps;
  static constexpr auto heatmap_mse = hpe::cpu::heatmap_mse;
  static constexpr auto heatmap_mse_backward = hpe::cpu::heatmap_mse_backward;
  static constexpr auto heatmap_mse_and_grad = hpe::cpu::heatmap_mse_and_grad;
  static constexpr auto decode_heatmaps = hpe::cpu::decode_heatmaps;
  static constexpr auto prepare_images = hpe::cpu::prepare_images;

  template <class Kernel>
  static void run(const Kernel& kernel, int threads) {
    const py::gil_scoped_release release;
    hpe::cpu::set_num_threads(threads);
    kernel();
  }
};

#ifdef HPE_WITH_CUDA
struct Cuda {
  static constexpr auto render_heatmaps = hpe::cuda::render_heatmaps;
  static constexpr auto heatmap_mse = hpe::cuda::heatmap_mse;
  static constexpr auto heatmap_mse_backward = hpe::cuda::heatmap_mse_backward;
  static constexpr auto heatmap_mse_and_grad = hpe::cuda::heatmap_mse_and_grad;
  static constexpr auto decode_heatmaps = hpe::cuda::decode_heatmaps;
  static constexpr auto prepare_images = hpe::cuda::prepare_images;

  template <class Kernel>
  static void run(const Kernel& kernel, int device, Address stream) {
    int error, current = device;
    {
      const py::gil_scoped_release release;
      error = cudaGetDevice(&current);
      if (!error && current != device) error = cudaSetDevice(device);
      if (!error) error = kernel(pointer<void>(stream));
      if (current != device) cudaSetDevice(current);
    }
    if (error) throw std::runtime_error(std::string("hpe_fast CUDA kernel: ") + hpe::cuda::error_string(error));
  }
};
#endif

// `Where...` are the types of those last arguments: (threads) on the CPU, (device, stream) on CUDA.
template <class Backend, class... Where>
void bind_heatmaps(py::module_ m) {
  m.def("render_heatmaps", [](Address out, Address keypoints, Address weights, const MapsTuple& maps_tuple,
                              const CodecArray& codec, Where... where) {
    const auto maps = make_maps(maps_tuple);
    if (empty(maps)) return;
    require_pointers({out, keypoints});
    Backend::run(
        [&](auto... stream) {
          return Backend::render_heatmaps(pointer<void>(out), pointer<float>(keypoints), pointer<float>(weights), maps,
                                          make_codec(codec), stream...);
        },
        where...);
  });
  m.def("decode_heatmaps", [](Address coords, Address scores, Address heatmaps, Address flipped, Address to_image,
                              int refine, bool shift, const std::vector<int32_t>& permutation,
                              const MapsTuple& maps_tuple, const CodecArray& codec, Where... where) {
    const auto maps = make_maps(maps_tuple);
    if (maps.batch * maps.joints == 0) return;
    require_pointers({coords, scores});
    require(heatmaps != 0 || empty(maps), "_hpe_fast: null pointer");
    const auto options = make_options(refine, shift, permutation, flipped, maps);
    Backend::run(
        [&](auto... stream) {
          return Backend::decode_heatmaps(pointer<float>(coords), pointer<float>(scores), pointer<void>(heatmaps),
                                          pointer<void>(flipped), pointer<float>(to_image), options, maps,
                                          make_codec(codec), stream...);
        },
        where...);
  });
}

template <class Backend, class... Where>
void bind_loss(py::module_ m) {
  m.def("heatmap_mse", [](Address per_joint, Address loss, Address heatmaps, Address keypoints, Address weights,
                          const MapsTuple& maps_tuple, const CodecArray& codec, Where... where) {
    const auto maps = make_maps(maps_tuple);
    if (!empty(maps)) require_pointers({per_joint, heatmaps, keypoints});
    Backend::run(
        [&](auto... stream) {
          return Backend::heatmap_mse(pointer<void>(per_joint), pointer<void>(loss), pointer<void>(heatmaps),
                                      pointer<float>(keypoints), pointer<float>(weights), maps, make_codec(codec),
                                      stream...);
        },
        where...);
  });
  m.def("heatmap_mse_backward", [](Address grad, Address grad_out, Address heatmaps, Address keypoints, Address weights,
                                   bool per_joint, const MapsTuple& maps_tuple, const CodecArray& codec,
                                   Where... where) {
    const auto maps = make_maps(maps_tuple);
    if (empty(maps)) return;
    require_pointers({grad, grad_out, heatmaps, keypoints});
    Backend::run(
        [&](auto... stream) {
          return Backend::heatmap_mse_backward(pointer<void>(grad), pointer<void>(grad_out), pointer<void>(heatmaps),
                                               pointer<float>(keypoints), pointer<float>(weights), per_joint, maps,
                                               make_codec(codec), stream...);
        },
        where...);
  });
  m.def("heatmap_mse_and_grad", [](Address per_joint, Address loss, Address grad, Address heatmaps, Address keypoints,
                                   Address weights, float grad_scale, const MapsTuple& maps_tuple,
                                   const CodecArray& codec, Where... where) {
    const auto maps = make_maps(maps_tuple);
    if (!empty(maps)) require_pointers({per_joint, loss, grad, heatmaps, keypoints});
    Backend::run(
        [&](auto... stream) {
          return Backend::heatmap_mse_and_grad(pointer<void>(per_joint), pointer<void>(loss), pointer<void>(grad),
                                               pointer<void>(heatmaps), pointer<float>(keypoints),
                                               pointer<float>(weights), grad_scale, maps, make_codec(codec), stream...);
        },
        where...);
  });
}

template <class Backend, class... Where>
void bind_images(py::module_ m) {
  m.def("prepare_images", [](Address out, Address images, Address color, Address noise_std, Address sample_ids,
                             const ImagesTuple& images_tuple, const Triple& mean, const Triple& std, Where... where) {
    const auto desc = make_images(images_tuple, mean, std);
    if (desc.batch * desc.height * desc.width == 0) return;
    require_pointers({out, images});
    require(noise_std == 0 || sample_ids != 0, "_hpe_fast: noise needs sample ids");
    Backend::run(
        [&](auto... stream) {
          return Backend::prepare_images(pointer<void>(out), pointer<uint8_t>(images), pointer<float>(color),
                                         pointer<float>(noise_std), pointer<int64_t>(sample_ids), desc, stream...);
        },
        where...);
  });
}

template <class Backend, class... Where>
void bind(py::module_ m) {
  bind_heatmaps<Backend, Where...>(m);
  bind_loss<Backend, Where...>(m);
  bind_images<Backend, Where...>(m);
}

#ifdef HPE_WITH_CUDA
int version_of(cudaError_t (*query)(int*)) {
  int version = 0;
  return query(&version) == cudaSuccess ? version : 0;
}
#endif

}  // namespace

PYBIND11_MODULE(_hpe_fast, m) {
  m.doc() = "Kernels of hpe_fast; call them through hpe_fast.ops, which checks what C++ cannot see.";
  m.attr("__version__") = HPE_FAST_VERSION;
  m.attr("cuda_architectures") = HPE_FAST_CUDA_ARCHITECTURES;
  m.attr("cuda_version") = HPE_FAST_CUDA_VERSION;
  m.def("simd", &hpe::cpu::simd);
  bind<Cpu, int>(m.def_submodule("cpu"));
#ifdef HPE_WITH_CUDA
  m.attr("built_with_cuda") = true;
  m.def("driver_version", [] { return version_of(cudaDriverGetVersion); });
  m.def("runtime_version", [] { return version_of(cudaRuntimeGetVersion); });
  bind<Cuda, int, Address>(m.def_submodule("cuda"));
#else
  m.attr("built_with_cuda") = false;
#endif
}
