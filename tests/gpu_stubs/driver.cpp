// A CUDA driver in C, with the types of cuda.h, for the real cuda-core: what goes wrong between Python and C goes wrong
// here as on a GPU. There are two GPUs, of which only the second works. Memory is the host's, work is done at once, and
// every function that needs a current context refuses without one. What was called is printed to stderr.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>

typedef struct Opaque *Handle;
typedef unsigned long long Pointer;

#define __global__
static struct { unsigned x; } blockIdx, blockDim, threadIdx;
KERNEL

enum { INVALID = 1, NO_CONTEXT = 201, NOT_FOUND = 500, CAPTURING = 900 };
static thread_local Handle current;
static const Handle context = (Handle)0x7f0000000001, pool = (Handle)0x7f4000000000, library = (Handle)0x7f2000000000,
                    function = (Handle)0x7f3000000000, graph = (Handle)0x7f5000000000, executable = (Handle)0x7f6000000000;
static uintptr_t streams = 0x7f1000000000;
static Handle capturing;
static long launches;

static int said(const char *what)
{
    fprintf(stderr, "%s\n", what);
    return 0;
}
static int ignored() { return 0; }

extern "C" {
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuGetErrorName(int code, const char **name)
{
    *name = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : code == NO_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_INVALID_VALUE";
    return 0;
}
int cuGetErrorString(int, const char **text) { *text = "what it means"; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int) { strncpy(name, "A driver in C", size); return 0; }
int cuDeviceGetAttribute(int *value, int which, int) { *value = which == 75 ? 8 : which == 76 ? 9 : 1; return 0; }
int cuDeviceTotalMem_v2(size_t *size, int) { *size = 1ull << 34; return 0; }
int cuDevicePrimaryCtxRetain(Handle *held, int device) { *held = context; return device == 1 ? 0 : INVALID; }
int cuCtxGetCurrent(Handle *now) { *now = current; return 0; }
int cuCtxSetCurrent(Handle next) { current = next; return 0; }
int cuCtxPushCurrent_v2(Handle next) { current = next; return 0; }
int cuCtxPopCurrent_v2(Handle *last) { *last = current; current = 0; return 0; }
int cuCtxGetDevice(int *device) { *device = 1; return current ? 0 : NO_CONTEXT; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = (size_t)5 << 32; *total = (size_t)6 << 32; return current ? 0 : NO_CONTEXT; }
int cuMemAllocHost_v2(void **memory, size_t size)
{
    *memory = memset(malloc(size), 77, size);
    return current ? said("allocate pinned") : NO_CONTEXT;
}
int cuMemFreeHost(void *memory)
{
    if (!current)
        return NO_CONTEXT;
    free(memory);
    return said("free pinned");
}
int cuDeviceGetDefaultMemPool(Handle *found, int device) { *found = pool; return device == 1 ? 0 : INVALID; }
int cuDeviceGetMemPool(Handle *found, int device) { *found = pool; return device == 1 ? 0 : INVALID; }
int cuMemPoolGetAttribute(Handle, int, void *value) { *(uint64_t *)value = 0; return 0; }
int cuMemPoolSetAttribute(Handle which, int attribute, void *value)
{
    fprintf(stderr, "keep %llu\n", *(unsigned long long *)value);
    return which == pool && attribute == 4 ? 0 : INVALID;
}
int cuMemAllocFromPoolAsync(Pointer *memory, size_t size, Handle from, Handle stream)
{
    *memory = (Pointer)memset(malloc(size), 77, size);
    return from == pool && stream && current ? said("allocate") : INVALID;
}
int cuMemFreeAsync(Pointer memory, Handle stream)
{
    free((void *)memory);
    return stream ? said("free") : INVALID;
}
int cuMemcpyAsync(Pointer to, Pointer from, size_t size, Handle)
{
    memcpy((void *)to, (void *)from, size);
    return current ? 0 : NO_CONTEXT;
}
int cuMemsetD8Async(Pointer memory, unsigned char value, size_t size, Handle) { memset((void *)memory, value, size); return 0; }
int cuStreamCreateWithPriority(Handle *stream, unsigned flags, int)
{
    *stream = (Handle)(streams += 0x1000);
    return flags == 1 && current ? said("create stream") : INVALID;  // 1: it does not wait for the default stream
}
int cuStreamSynchronize(Handle stream) { return getenv("LOST") ? 700 : stream == capturing ? CAPTURING : 0; }
int cuStreamDestroy_v2(Handle) { return said("destroy stream"); }
int cuStreamBeginCapture_v2(Handle stream, int mode)
{
    capturing = stream;
    return mode == 1 ? said("begin capture") : INVALID;  // 1: it forbids nothing to other threads
}
int cuStreamEndCapture(Handle stream, Handle *found)
{
    *found = graph;
    int code = stream == capturing ? said("end capture") : INVALID;
    capturing = 0;
    return code;
}
int cuStreamIsCapturing(Handle stream, int *status) { *status = stream && stream == capturing; return 0; }
int cuStreamGetCaptureInfo_v2(Handle stream, int *status, uint64_t *, Handle *found, const Handle **, size_t *)
{
    *status = stream && stream == capturing;
    if (found)
        *found = graph;
    return 0;
}
int cuStreamGetCaptureInfo_v3(Handle stream, int *status, uint64_t *id, Handle *found, const Handle **nodes, void *, size_t *count)
{
    if (count)
        *count = 0;
    return cuStreamGetCaptureInfo_v2(stream, status, id, found, nodes, count);
}
int cuGraphInstantiateWithParams(Handle *made, Handle from, void *) { *made = executable; return from == graph ? said("instantiate") : INVALID; }
int cuGraphLaunch(Handle what, Handle stream) { return what == executable && stream ? said("launch graph") : INVALID; }
int cuGraphDestroy(Handle) { return said("destroy graph"); }
int cuGraphExecDestroy(Handle) { return said("destroy executable"); }
int cuLibraryLoadData(Handle *loaded, const void *code, void *, void *, unsigned, void *, void *, unsigned)
{
    *loaded = library;
    if (!memcmp(code, "\177ELF", 4))  // NVRTC's, for the GPU itself: a driver that is too old for it
        return said("refuse cubin") + 218;
    return strstr((const char *)code, ".visible .entry resample(") ? said("load") : INVALID;
}
int cuLibraryGetKernel(Handle *found, Handle from, const char *name)
{
    *found = function;
    return from == library && !strcmp(name, "resample") ? 0 : NOT_FOUND;
}
int cuLibraryUnload(Handle) { return said("unload"); }
struct Config { unsigned x, y, z, block_x, block_y, block_z, shared; Handle stream; };
int cuLaunchKernelEx(const Config *config, Handle which, void **args, void **)
{
    if (which != function || config->y * config->z * config->block_y * config->block_z != 1 || config->block_x > 1024)
        return INVALID;
    blockDim.x = config->block_x;
    for (blockIdx.x = 0; blockIdx.x < config->x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < config->block_x; ++threadIdx.x)
            resample(*(unsigned char **)args[0], *(unsigned char **)args[1], *(int **)args[2], *(int *)args[3],
                     *(int *)args[4], *(int *)args[5], *(int *)args[6], *(long long *)args[7]);
    return 0;
}
int cuGetProcAddress_v2(const char *name, void **found, int, uint64_t, int *status)
{
    char second[200];
    snprintf(second, sizeof second, "%s_v2", name);
    *found = dlsym(RTLD_DEFAULT, second);
    if (!*found)
        *found = dlsym(RTLD_DEFAULT, name);
    if (!*found)
        *found = (void *)ignored;
    if (status)
        *status = 0;
    return 0;
}
int cuGetProcAddress(const char *name, void **found, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
}
