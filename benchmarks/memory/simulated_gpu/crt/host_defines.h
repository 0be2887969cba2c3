/* Macros that NVIDIA's driver_types.h needs from a header that is missing in the runtime's Python package. */
#include <stddef.h>
#define CUDARTAPI
#define __host__
#define __device__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
