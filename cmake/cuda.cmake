# Decides whether the CUDA kernels are built and says so in one line. Sets HPE_FAST_CUDA_VERSION and
# HPE_FAST_CUDA_ARCHITECTURES, empty without CUDA.
include(CheckLanguage)

set(HPE_FAST_CUDA_VERSION "")
set(HPE_FAST_CUDA_ARCHITECTURES "")

# The compiler of the PyPI wheels nvidia-cuda-nvcc and so on (build requirements of HPE_FAST_CUDA=ON, see pyproject.toml),
# where no toolkit is installed. They make up a toolkit whose libraries are in lib, not lib64, and lack libcudart.so.
function(hpe_use_cuda_wheels)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import nvidia, pathlib
for folder in nvidia.__path__:
    for nvcc in sorted(pathlib.Path(folder).glob('*/bin/nvcc')):
        print(nvcc, end=''); raise SystemExit"
    OUTPUT_VARIABLE nvcc ERROR_QUIET)
  if(EXISTS "${nvcc}")
    cmake_path(GET nvcc PARENT_PATH bin)
    cmake_path(GET bin PARENT_PATH root)
    file(GLOB cudart ${root}/lib/libcudart.so*)
    set(ENV{CUDACXX} ${nvcc})
    set(ENV{CUDAFLAGS} "-L${root}/lib $ENV{CUDAFLAGS}")
    set(CUDAToolkit_ROOT ${root} CACHE PATH "From PyPI wheels")
    set(CUDA_CUDART ${cudart} CACHE FILEPATH "Only for FindCUDAToolkit; the static library is linked")
  endif()
endfunction()

# Sets `problem` to why there is no usable toolkit, or to nothing. The compiler is named by the environment, since
# check_language tests nothing where CMAKE_CUDA_COMPILER is set.
macro(hpe_find_cuda problem)
  set(${problem} "")
  find_program(HPE_FAST_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    if(HPE_FAST_NVCC)
      set(ENV{CUDACXX} ${HPE_FAST_NVCC})
    else()
      hpe_use_cuda_wheels()
    endif()
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES all-major)  # never `native`: the machine that builds may have no GPU, or another one
  endif()
  if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
    hpe_try_cuda(${problem})
  else()
    set(${problem} "no CUDA toolkit found")
  endif()
endmacro()

# An nvcc may lack headers, or refuse the host's compiler or the architectures asked for: found is not yet usable.
macro(hpe_try_cuda problem)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${problem} "$ENV{CUDACXX} does not work with this compiler and these architectures")
  else()
    enable_language(CUDA)
    find_package(CUDAToolkit QUIET)
    find_file(HPE_FAST_CUDA_HEADER cuda_runtime.h PATHS ${CUDAToolkit_INCLUDE_DIRS} NO_DEFAULT_PATH)
    if(NOT CUDAToolkit_FOUND OR NOT TARGET CUDA::cudart_static)
      set(${problem} "${CMAKE_CUDA_COMPILER} has no runtime library beside it")
    elseif(NOT HPE_FAST_CUDA_HEADER)
      set(${problem} "${CMAKE_CUDA_COMPILER} has no headers beside it")
    endif()
  endif()
endmacro()

function(hpe_add_cuda_kernels)
  target_sources(_hpe_fast PRIVATE csrc/cuda/render.cu csrc/cuda/loss.cu csrc/cuda/decode.cu csrc/cuda/prepare.cu)
  # Static: the module then loads everywhere, whatever CUDA libraries torch has brought along, or none.
  set_target_properties(_hpe_fast PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
  target_link_libraries(_hpe_fast PRIVATE CUDA::cudart_static)
  target_compile_definitions(_hpe_fast PRIVATE HPE_WITH_CUDA)
endfunction()

set(cuda_problem "HPE_FAST_CUDA=OFF")
if(NOT HPE_FAST_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "hpe_fast: HPE_FAST_CUDA must be AUTO, ON or OFF, got '${HPE_FAST_CUDA}'")
elseif(NOT HPE_FAST_CUDA STREQUAL "OFF")
  hpe_find_cuda(cuda_problem)
endif()

if(NOT cuda_problem)
  hpe_add_cuda_kernels()
  set(HPE_FAST_CUDA_VERSION ${CUDAToolkit_VERSION})
  set(architectures ${CMAKE_CUDA_ARCHITECTURES})
  if(architectures STREQUAL "all-major" AND CMAKE_CUDA_ARCHITECTURES_ALL_MAJOR)
    set(architectures ${CMAKE_CUDA_ARCHITECTURES_ALL_MAJOR})
  endif()
  list(JOIN architectures " " HPE_FAST_CUDA_ARCHITECTURES)
  message(STATUS "hpe_fast: CUDA kernels ON (nvcc ${CUDAToolkit_VERSION}, architectures ${HPE_FAST_CUDA_ARCHITECTURES})")
elseif(HPE_FAST_CUDA STREQUAL "ON")
  message(FATAL_ERROR "hpe_fast: HPE_FAST_CUDA=ON, but ${cuda_problem}. Install a CUDA toolkit and put its nvcc on PATH "
                      "(or set CUDACXX), or build without CUDA kernels: HPE_FAST_CUDA=OFF pip install .")
else()
  message(STATUS "hpe_fast: CUDA kernels OFF (${cuda_problem})")
endif()
