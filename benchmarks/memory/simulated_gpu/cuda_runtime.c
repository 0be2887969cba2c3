/* A simulated CUDA device that computes nothing, loaded before the real runtime and driver (LD_PRELOAD).
 *
 * Allocations are counted, and fail when the device is full. Copies from and to the host are made, so a program reads back what it
 * wrote. Kernels, matrix products and graphs are accepted and not run. All other CUDA functions are stubs that return success (see
 * build_library.py). SIMULATED_GPU_BYTES: memory of the device; SIMULATED_CONTEXT_BYTES: the part that the CUDA context takes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <driver_types.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, PAGE = 2 << 20, BUCKETS = 1 << 16 };
static const size_t SPAN = (size_t)32 << 40; /* address space; no address is reused */

struct block { void *start; size_t size; struct block *next; };
static struct block *blocks[BUCKETS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *device;
static size_t capacity, context, allocated, next_offset;
static int failed, capturing;

static size_t bytes_of(const char *name) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : 0;
}

static void begin(void) {
    if (device) return;
    capacity = bytes_of("SIMULATED_GPU_BYTES");
    context = bytes_of("SIMULATED_CONTEXT_BYTES");
    device = mmap(NULL, SPAN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (device == MAP_FAILED) {
        perror("simulated GPU: mmap");
        abort();
    }
    device = (char *)(((uintptr_t)device + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
}

static int is_on_device(const void *p) { return device && (const char *)p >= device && (const char *)p < device + SPAN; }

static struct block **bucket(const void *p) { return &blocks[((uintptr_t)p >> 12 ^ (uintptr_t)p >> 28) & (BUCKETS - 1)]; }

static struct block **find(const void *p) {
    struct block **slot = bucket(p);
    while (*slot && (*slot)->start != p) slot = &(*slot)->next;
    return slot;
}

static void add_block(void *p, size_t size) {
    struct block *new = malloc(sizeof *new), **first = bucket(p);
    *new = (struct block){p, size, *first};
    *first = new;
}

/* Memory. */

int cudaMalloc(void **p, size_t size) {
    int result = SUCCESS;
    pthread_mutex_lock(&lock);
    begin();
    size = (size + PAGE - 1) & ~(size_t)(PAGE - 1);
    if (allocated + size + context > capacity) {
        *p = NULL;
        result = failed = OUT_OF_MEMORY;
    } else if (next_offset + size + PAGE > SPAN) {
        fprintf(stderr, "simulated GPU: out of address space\n");
        abort();
    } else {
        *p = device + next_offset;
        next_offset += size;
        allocated += size;
        add_block(*p, size);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int cudaFree(void *p) {
    pthread_mutex_lock(&lock);
    struct block **slot = find(p), *block = *slot;
    if (block) {
        *slot = block->next;
        if (is_on_device(p)) {
            allocated -= block->size;
            madvise(p, block->size, MADV_DONTNEED);
        } else {
            free(p);
        }
        free(block);
    }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cudaHostAlloc(void **p, size_t size, unsigned flags) {
    *p = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);
    pthread_mutex_lock(&lock);
    add_block(*p, size);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cudaFreeHost(void *p) { return cudaFree(p); }
int cudaMallocAsync(void **p, size_t size, void *stream) { return cudaMalloc(p, size); }
int cudaFreeAsync(void *p, void *stream) { return cudaFree(p); }
/* Host memory, to which the driver evicts managed memory when the device is full. */
int cudaMallocManaged(void **p, size_t size, unsigned flags) { return cudaHostAlloc(p, size, flags); }

int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    pthread_mutex_lock(&lock);
    begin();
    *total = capacity;
    *free_bytes = capacity > allocated + context ? capacity - allocated - context : 0;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    /* Values on the device are meaningless, so copies within it are skipped. */
    if (!(is_on_device(to) && is_on_device(from))) memcpy(to, from, size);
    return SUCCESS;
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { return cudaMemcpy(to, from, size, kind); }

int cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *p) {
    pthread_mutex_lock(&lock);
    int known = *find(p) != NULL;
    pthread_mutex_unlock(&lock);
    memset(attributes, 0, sizeof *attributes);
    attributes->type = is_on_device(p) ? cudaMemoryTypeDevice : known ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    attributes->devicePointer = attributes->hostPointer = (void *)p;
    return SUCCESS;
}

/* Device properties of an H100 or H200, by which kernels are selected. */

int cudaGetDeviceCount(int *count) { return *count = 1, SUCCESS; }
int cudaGetDevice(int *index) { return *index = 0, SUCCESS; }
int cudaRuntimeGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cudaDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }

int cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int index) {
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *value = 1024; break;
        case cudaDevAttrMaxBlockDimZ: *value = 64; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
        case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
        case cudaDevAttrClockRate: *value = 1980000; break;
        case cudaDevAttrMemoryClockRate: *value = 2619000; break;
        case cudaDevAttrGlobalMemoryBusWidth: *value = 5120; break;
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrConcurrentKernels: case cudaDevAttrUnifiedAddressing: case cudaDevAttrConcurrentManagedAccess: *value = 1; break;
        default: *value = 0;
    }
    return SUCCESS;
}

int cudaGetDeviceProperties(struct cudaDeviceProp *properties, int index) {
    pthread_mutex_lock(&lock);
    begin();
    pthread_mutex_unlock(&lock);
    *properties = (struct cudaDeviceProp){
        .name = "simulated GPU", .totalGlobalMem = capacity, .major = 9, .multiProcessorCount = 132, .warpSize = 32,
        .sharedMemPerBlock = 48 << 10, .sharedMemPerBlockOptin = 227 << 10, .sharedMemPerMultiprocessor = 228 << 10,
        .regsPerBlock = 65536, .regsPerMultiprocessor = 65536, .maxThreadsPerBlock = 1024, .maxThreadsPerMultiProcessor = 2048,
        .maxThreadsDim = {1024, 1024, 64}, .maxGridSize = {2147483647, 65535, 65535}, .maxBlocksPerMultiProcessor = 32,
        .totalConstMem = 65536, .textureAlignment = 512, .l2CacheSize = 50 << 20, .memoryBusWidth = 5120,
        .concurrentKernels = 1, .unifiedAddressing = 1, .managedMemory = 1, .concurrentManagedAccess = 1, .cooperativeLaunch = 1,
    };
    return SUCCESS;
}

int cudaDeviceGetPCIBusId(char *text, int size, int index) { return snprintf(text, size, "0000:00:00.0"), SUCCESS; }
int cudaDeviceCanAccessPeer(int *can) { return *can = 0, SUCCESS; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, SUCCESS; }

int cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel) {
    *attributes = (struct cudaFuncAttributes){.maxThreadsPerBlock = 1024, .numRegs = 64, .binaryVersion = 90, .ptxVersion = 90};
    return SUCCESS;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { return *blocks = 1, SUCCESS; }

/* Errors, streams, events. */

int cudaPeekAtLastError(void) { return failed; }
int cudaGetLastError(void) {
    int last = failed;
    failed = SUCCESS;
    return last;
}
const char *cudaGetErrorName(int error) { return error == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : "cudaError"; }
const char *cudaGetErrorString(int error) { return error == OUT_OF_MEMORY ? "out of memory" : error ? "an error" : "no error"; }

static int new_handle(void **handle) {
    static uintptr_t last = 1 << 16;
    *handle = (void *)__sync_add_and_fetch(&last, 64);
    return SUCCESS;
}

int cudaStreamCreate(void **stream) { return new_handle(stream); }
int cudaStreamCreateWithFlags(void **stream) { return new_handle(stream); }
int cudaStreamCreateWithPriority(void **stream) { return new_handle(stream); }
int cudaStreamGetPriority(void *stream, int *priority) { return *priority = 0, SUCCESS; }
int cudaEventCreate(void **event) { return new_handle(event); }
int cudaEventCreateWithFlags(void **event) { return new_handle(event); }
int cudaEventElapsedTime(float *milliseconds) { return *milliseconds = 1, SUCCESS; }
int cudaDeviceGetDefaultMemPool(void **pool) { return new_handle(pool); }

/* CUDA graphs are empty. */

int cudaStreamIsCapturing(void *stream, int *status) { return *status = capturing, SUCCESS; }
int cudaStreamGetCaptureInfo(void *stream, int *status, unsigned long long *id, void **graph, void **first, void **edges, size_t *count) {
    *status = capturing;
    if (id) *id = 1;
    if (graph) *graph = &capturing;
    if (first) *first = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return SUCCESS;
}
int cudaStreamBeginCapture(void) { return capturing = 1, SUCCESS; }
int cudaStreamEndCapture(void *stream, void **graph) { return capturing = 0, *graph = &capturing, SUCCESS; }
int cudaGraphInstantiateWithFlags(void **runnable) { return new_handle(runnable); }
int cudaGraphGetNodes(void *graph, void *nodes, size_t *count) { return *count = 1, SUCCESS; }

/* Kernels that are linked in, and kernels of Triton, which the driver loads. */

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[1];
    return handle;
}
int __cudaGetKernel(const void **kernel, const void *function) { return *kernel = function, SUCCESS; }

int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGet(int *index) { return *index = 0, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int index) { return cudaDeviceGetAttribute(value, attribute, index); }
int cuDevicePrimaryCtxGetState(int index, unsigned *flags, int *active) { return *flags = 0, *active = 1, SUCCESS; }
int cuDevicePrimaryCtxRetain(void **context_handle) { return *context_handle = &capturing, SUCCESS; }
int cuCtxGetCurrent(void **context_handle) { return *context_handle = &capturing, SUCCESS; }
int cuModuleLoadData(void **module) { return new_handle(module); }
int cuModuleLoadDataEx(void **module) { return new_handle(module); }
int cuModuleLoad(void **module) { return new_handle(module); }
int cuModuleGetFunction(void **function) { return new_handle(function); }
int cuFuncGetAttribute(int *value, int attribute) { return *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : 0, SUCCESS; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks) { return *blocks = 1, SUCCESS; }
int cuOccupancyMaxActiveClusters(int *clusters) { return *clusters = 16, SUCCESS; }
int cuGetErrorString(int error, const char **text) { return *text = "no error", SUCCESS; }
int cuPointerGetAttribute(uint64_t *value, int attribute, uint64_t p) { return *value = p, SUCCESS; }
int cuCtxGetLimit(size_t *value) { return *value = 0, SUCCESS; }

static int succeed(void) { return SUCCESS; }
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags, int *status) {
    void *symbol = dlsym(RTLD_DEFAULT, name);
    *function = symbol ? symbol : (void *)succeed;
    if (status) *status = SUCCESS;
    return SUCCESS;
}
int cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags, int *status) {
    return cudaGetDriverEntryPointByVersion(name, function, 0, flags, status);
}

/* cuBLAS. */

int cublasCreate_v2(void **handle) { return new_handle(handle); }
int cublasLtCreate(void **handle) { return new_handle(handle); }
int cublasGetMathMode(void *handle, int *mode) { return *mode = 0, SUCCESS; }
int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = 0, SUCCESS; }
size_t cublasLtGetVersion(void) { return 130000; }
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *d, void *a, void *b, void *c, void *o, void *p, int requested, void *results, int *count) {
    memset(results, 0, 96); /* one algorithm, without workspace */
    return *count = 1, SUCCESS;
}
