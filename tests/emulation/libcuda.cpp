// A library libcuda.so.1 with the entry points by which CuPy loads and launches kernels. Each asks
// a function of Python, which `tests/standin.py` puts into its place.

typedef unsigned int u32;

extern "C" {
int (*fg_load)(void** module, const char* image);
int (*fg_unload)(void* module);
int (*fg_get)(void** function, void* module, const char* name);
int (*fg_launch)(void* function, const u32* shape, u32 shared, void* stream, void** arguments);

int cuModuleLoadData(void** module, const void* image) {
    return fg_load(module, static_cast<const char*>(image));
}
int cuModuleUnload(void* module) { return fg_unload(module); }
int cuModuleGetFunction(void** function, void* module, const char* name) {
    return fg_get(function, module, name);
}
int cuLaunchKernel(void* function, u32 x, u32 y, u32 z, u32 bx, u32 by, u32 bz, u32 shared,
                   void* stream, void** arguments, void** extra) {
    const u32 shape[] = {x, y, z, bx, by, bz};
    return extra ? 801 : fg_launch(function, shape, shared, stream, arguments);
}
int cuGetErrorName(int error, const char** name) {
    *name = error == 719 ? "CUDA_ERROR_LAUNCH_FAILED"
            : error == 500 ? "CUDA_ERROR_NOT_FOUND"
            : error == 200 ? "CUDA_ERROR_INVALID_IMAGE"
                           : "CUDA_ERROR_UNKNOWN";
    return 0;
}
int cuGetErrorString(int, const char** text) {
    *text = "of the emulation";
    return 0;
}
}
