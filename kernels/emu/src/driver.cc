// SPDX-License-Identifier: Apache-2.0
//
// The stand-in for libcuda.so.1: the part of the driver interface that package cuda uses, on top
// of kernels that run on the processor. Stricter than the real driver where a mistake would only
// show on a real device:
//
//   - work on a stream runs when something waits for it, not before; a missing wait reads old data
//   - asynchronous copies take pinned memory only
//   - fresh device memory is 0xc5, not zero; the bytes around an allocation are guarded
//   - a module is refused when a parameter's size in its PTX is not the host's
//   - what is still allocated when the context goes is counted as leaked
//
// Tests steer it with the cuEmu functions below, or with the variable KVIST_EMU.
#include "state.h"

// ---- what tests call

extern "C" __attribute__((visibility("default"))) void cuEmuReset(const char* text) {
  std::lock_guard<std::recursive_mutex> hold(lock);
  config = Config();
  configure(text);
  calls = fail_at = 0;
  launches = leaked = 0;
  seed = 0;
  initialised = false;
  primary = Context();
  free_everything();
}
extern "C" __attribute__((visibility("default"))) void cuEmuFailAt(long n, int code) {
  std::lock_guard<std::recursive_mutex> hold(lock);
  fail_at = calls + n;
  fail_code = code;
  failed_call.clear();
}
extern "C" __attribute__((visibility("default"))) void cuEmuSeed(unsigned s) { seed = s; }
// 0 calls, 1 launches, 2 device allocations, 3 pinned ones, 4 streams, 5 events, 6 modules,
// 7 users of the context, 8 things leaked when the context went, 9 device bytes.
extern "C" __attribute__((visibility("default"))) long cuEmuCount(int what) {
  std::lock_guard<std::recursive_mutex> hold(lock);
  const long counts[] = {calls, launches, static_cast<long>(device.size()),
                         static_cast<long>(host.size()), static_cast<long>(streams.size()), events,
                         modules, primary.refs, leaked, static_cast<long>(used)};
  return counts[what];
}
// 0: why the last kernel failed. 1: the call that failed on demand.
extern "C" __attribute__((visibility("default"))) const char* cuEmuText(int what) {
  return what == 0 ? why.c_str() : failed_call.c_str();
}

// ---- the driver

API cuInit(unsigned flags) {
  std::lock_guard<std::recursive_mutex> hold(lock);
  static std::string seen;  // of the variable: a test may set it anew
  const char* now = getenv("KVIST_EMU");
  if (seen != (now ? now : "")) {
    seen = now ? now : "";
    config = Config();
    configure(now);
  }
  calls++;
  if (calls == fail_at) {
    failed_call = __func__;
    return fail_code;
  }
  if (flags) return INVALID_VALUE;
  if (config.init) return config.init;
  initialised = true;
  return SUCCESS;
}
API cuDriverGetVersion(int* v) {
  std::lock_guard<std::recursive_mutex> hold(lock);
  calls++;
  if (calls == fail_at) {
    failed_call = __func__;
    return fail_code;
  }
  *v = config.version;
  return SUCCESS;
}
API cuDeviceGetCount(int* n) {
  ENTER(false);
  *n = config.devices;
  return SUCCESS;
}
API cuDeviceGet(int* d, int i) {
  ENTER(false);
  if (i < 0 || i >= config.devices) return INVALID_DEVICE;
  *d = i;
  return SUCCESS;
}
API cuDeviceGetName(char* b, int n, int) {
  ENTER(false);
  snprintf(b, static_cast<size_t>(n), "stand-in on the processor");
  return SUCCESS;
}
API cuDeviceTotalMem_v2(size_t* b, int) {
  ENTER(false);
  *b = config.memory;
  return SUCCESS;
}
API cuDeviceGetAttribute(int* v, int a, int) {
  ENTER(false);
  switch (a) {
    case 16: *v = 2; break;                    // multiprocessors
    case 75: *v = config.sm / 10; break;       // compute capability
    case 76: *v = config.sm % 10; break;
    case 97: *v = emu::max_shared; break;      // shared memory, opt-in
    default: *v = 0;
  }
  return SUCCESS;
}
API cuDevicePrimaryCtxRetain(Context** c, int) {
  ENTER(false);
  primary.refs++;
  *c = &primary;
  return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) {
  std::lock_guard<std::recursive_mutex> hold(lock);
  const CUresult result = enter(__func__, false);
  if (result == NOT_INITIALIZED || primary.refs == 0) return INVALID_CONTEXT;
  if (--primary.refs == 0) {
    if (primary.sticky == SUCCESS) {
      leaked += static_cast<int>(device.size() + host.size() + streams.size()) + events + modules;
    }
    primary.sticky = SUCCESS;
    free_everything();
  }
  return result;
}
API cuCtxPushCurrent_v2(Context* c) {
  ENTER(false);
  context_stack.push_back(c);
  return SUCCESS;
}
API cuCtxPopCurrent_v2(Context** c) {
  std::lock_guard<std::recursive_mutex> hold(lock);
  const CUresult result = enter(__func__, false);
  if (context_stack.empty()) return INVALID_CONTEXT;
  if (c) *c = context_stack.back();
  context_stack.pop_back();
  return result;
}
API cuModuleLoadDataEx(Module** m, const void* image, unsigned n, int* options, void** values) {
  ENTER(true);
  const char* text = static_cast<const char*>(image);
  std::string log;
  CUresult result = SUCCESS;
  int major = 0, minor = 0;
  const char* v = strstr(text, ".version ");
  if (!v || sscanf(v, ".version %d.%d", &major, &minor) != 2) {
    log = "ptxas fatal: missing .version directive";
    result = INVALID_PTX;
  } else if (major * 10 + minor > config.ptx) {
    log = "ptxas fatal: Unsupported .version " + std::to_string(major) + "." +
          std::to_string(minor) + "; current version is '" + std::to_string(config.ptx / 10) + "." +
          std::to_string(config.ptx % 10) + "'";
    result = UNSUPPORTED_PTX_VERSION;
  }
  auto module = std::make_unique<Module>();
  for (const emu::KernelEntry& k : emu::kernels()) {
    const long bytes = ptx_param_bytes(text, k.name);
    if (bytes < 0) continue;
    if (bytes != static_cast<long>(k.size)) {
      log += k.name + ": the parameter has " + std::to_string(bytes) + " bytes in PTX and " +
             std::to_string(k.size) + " in the sources\n";
      if (result == SUCCESS) result = INVALID_IMAGE;
    }
    module->functions[k.name] = {&k};
  }
  if (!log.empty()) {
    size_t room = 0;
    for (unsigned i = 0; i < n; i++) {
      if (options[i] == 6) room = reinterpret_cast<size_t>(values[i]);
    }
    for (unsigned i = 0; i < n; i++) {
      if (options[i] == 5 && room) snprintf(static_cast<char*>(values[i]), room, "%s", log.c_str());
    }
  }
  if (result) return result;
  modules++;
  *m = module.release();
  return SUCCESS;
}
API cuModuleUnload(Module* m) {
  RELEASE();
  drain_all();
  if (modules > 0) modules--;
  delete m;
  return result;
}
API cuModuleGetFunction(Function** f, Module* m, const char* name) {
  ENTER(true);
  auto it = m->functions.find(name);
  if (it == m->functions.end()) return NOT_FOUND;
  *f = &it->second;
  return SUCCESS;
}
API cuFuncSetAttribute(Function* f, int attribute, int value) {
  ENTER(true);
  if (attribute == 8) {
    if (value < 0 || static_cast<size_t>(value) > emu::max_shared) return INVALID_VALUE;
    f->dynamic_shared = static_cast<unsigned>(value);
  }
  return SUCCESS;
}
API cuMemAlloc_v2(uintptr_t* p, size_t n) {
  ENTER(true);
  if (n == 0) return INVALID_VALUE;
  if (n > config.memory || used > config.memory - n) return OUT_OF_MEMORY;
  const size_t rounded = (n + 255) / 256 * 256, body = (rounded + page - 1) / page * page;
  char* map = static_cast<char*>(mmap(nullptr, body + 2 * page, PROT_NONE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (map == MAP_FAILED) return OUT_OF_MEMORY;
  mprotect(map + page, body, PROT_READ | PROT_WRITE);
  memset(map + page, guard, body);
  char* at = map + page + (body - rounded);  // ends as close to the guard page as alignment lets it
  device[reinterpret_cast<uintptr_t>(at)] = {n, map, body + 2 * page};
  used += n;
  *p = reinterpret_cast<uintptr_t>(at);
  return SUCCESS;
}
API cuMemFree_v2(uintptr_t p) {
  RELEASE();
  auto it = device.find(p);
  if (it == device.end()) return INVALID_VALUE;
  const CUresult drained = drain_all();
  used -= it->second.bytes;
  munmap(it->second.map, it->second.map_bytes);
  device.erase(it);
  return result ? result : drained;
}
API cuMemHostAlloc(void** p, size_t n, unsigned) {
  ENTER(true);
  const size_t bytes = (n + page - 1) / page * page;
  *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*p == MAP_FAILED) return OUT_OF_MEMORY;
  host[reinterpret_cast<uintptr_t>(*p)] = bytes;
  return SUCCESS;
}
API cuMemFreeHost(void* p) {
  RELEASE();
  auto it = host.find(reinterpret_cast<uintptr_t>(p));
  if (it == host.end()) return INVALID_VALUE;
  drain_all();
  munmap(p, it->second);
  host.erase(it);
  return result;
}
API cuMemcpyHtoDAsync_v2(uintptr_t d, const void* h, size_t n, Stream* s) {
  ENTER(true);
  if (!known(s) || !in_device(d, n) || !in_host(h, n)) return INVALID_VALUE;
  s->queue.push_back([=] {
    memcpy(reinterpret_cast<void*>(d), h, n);
    return SUCCESS;
  });
  return SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void* h, uintptr_t d, size_t n, Stream* s) {
  ENTER(true);
  if (!known(s) || !in_device(d, n) || !in_host(h, n)) return INVALID_VALUE;
  s->queue.push_back([=] {
    memcpy(h, reinterpret_cast<void*>(d), n);
    return SUCCESS;
  });
  return SUCCESS;
}
API cuMemcpyDtoDAsync_v2(uintptr_t d, uintptr_t from, size_t n, Stream* s) {
  ENTER(true);
  if (!known(s) || !in_device(d, n) || !in_device(from, n)) return INVALID_VALUE;
  s->queue.push_back([=] {
    memmove(reinterpret_cast<void*>(d), reinterpret_cast<void*>(from), n);
    return SUCCESS;
  });
  return SUCCESS;
}
API cuMemsetD8Async(uintptr_t d, unsigned char value, size_t n, Stream* s) {
  ENTER(true);
  if (!known(s) || !in_device(d, n)) return INVALID_VALUE;
  s->queue.push_back([=] {
    memset(reinterpret_cast<void*>(d), value, n);
    return SUCCESS;
  });
  return SUCCESS;
}
API cuMemGetInfo_v2(size_t* free, size_t* total) {
  ENTER(true);
  *total = config.memory;
  *free = config.memory - used;
  return SUCCESS;
}
API cuStreamCreate(Stream** s, unsigned) {
  ENTER(true);
  *s = new Stream;
  streams.push_back(*s);
  return SUCCESS;
}
API cuStreamDestroy_v2(Stream* s) {
  RELEASE();
  if (!known(s)) return INVALID_HANDLE;
  drain(s);
  streams.erase(std::remove(streams.begin(), streams.end(), s), streams.end());
  delete s;
  return result;
}
API cuStreamSynchronize(Stream* s) {
  ENTER(true);
  return known(s) ? drain(s) : INVALID_HANDLE;
}
API cuEventCreate(Event** e, unsigned) {
  ENTER(true);
  *e = new Event;
  events++;
  return SUCCESS;
}
API cuEventDestroy_v2(Event* e) {
  RELEASE();
  drain_all();
  if (events > 0) events--;
  delete e;
  return result;
}
API cuEventRecord(Event* e, Stream* s) {
  ENTER(true);
  if (!known(s)) return INVALID_HANDLE;
  e->recorded = true;
  e->done = false;
  s->queue.push_back([=] {
    e->done = true;
    e->ms = now_ms();
    return SUCCESS;
  });
  return SUCCESS;
}
API cuEventSynchronize(Event* e) {
  ENTER(true);
  return e->done || !e->recorded ? SUCCESS : drain_all();
}
API cuEventElapsedTime(float* ms, Event* a, Event* b) {
  ENTER(true);
  if (!a->recorded || !b->recorded) return INVALID_HANDLE;
  if (!a->done || !b->done) return NOT_READY;
  *ms = static_cast<float>(b->ms - a->ms);
  return SUCCESS;
}
API cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, Stream* s, void** params, void** extra) {
  ENTER(true);
  if (!f || !known(s)) return INVALID_HANDLE;
  if (!gx || !gy || !gz || !bx || !by || !bz || gx > 0x7fffffffu || gy > 65535 || gz > 65535 ||
      static_cast<uint64_t>(bx) * by * bz > 1024 || shared > f->dynamic_shared) {
    return INVALID_VALUE;
  }
  if (params || !extra) return INVALID_VALUE;  // one buffer is what the launcher uses
  void* buffer = nullptr;
  size_t bytes = 0;
  for (void** e = extra; *e; e += 2) {
    if (e[0] == reinterpret_cast<void*>(1)) buffer = e[1];
    if (e[0] == reinterpret_cast<void*>(2)) bytes = *static_cast<size_t*>(e[1]);
  }
  if (!buffer || bytes != f->kernel->size) return INVALID_VALUE;
  const char* b = static_cast<const char*>(buffer);
  auto copy = std::make_shared<std::vector<char>>(b, b + bytes);  // at the call, as a driver does
  const emu::KernelEntry* k = f->kernel;
  launches++;
  s->queue.push_back([=]() -> CUresult {
    if (k->name == config.skip) return SUCCESS;
    switch (emu::run(*k, {gx, gy, gz}, {bx, by, bz}, copy->data(), shared, seed, &why)) {
      case emu::NO_FAULT: return guards_hold(k->name) ? SUCCESS : ILLEGAL_ADDRESS_;
      case emu::ILLEGAL_ADDRESS: return ILLEGAL_ADDRESS_;
      case emu::MISALIGNED: return MISALIGNED_ADDRESS;
      default: return LAUNCH_FAILED;
    }
  });
  return SUCCESS;
}
API cuGetErrorName(CUresult e, const char** s) {
  static const std::map<CUresult, const char*> names = {
      {0, "CUDA_SUCCESS"}, {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"},
      {3, "CUDA_ERROR_NOT_INITIALIZED"}, {100, "CUDA_ERROR_NO_DEVICE"},
      {101, "CUDA_ERROR_INVALID_DEVICE"}, {200, "CUDA_ERROR_INVALID_IMAGE"},
      {201, "CUDA_ERROR_INVALID_CONTEXT"}, {218, "CUDA_ERROR_INVALID_PTX"},
      {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"}, {400, "CUDA_ERROR_INVALID_HANDLE"},
      {500, "CUDA_ERROR_NOT_FOUND"}, {600, "CUDA_ERROR_NOT_READY"},
      {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {716, "CUDA_ERROR_MISALIGNED_ADDRESS"},
      {719, "CUDA_ERROR_LAUNCH_FAILED"}, {999, "CUDA_ERROR_UNKNOWN"}};
  auto it = names.find(e);
  if (it == names.end()) return INVALID_VALUE;
  *s = it->second;
  return SUCCESS;
}
