// SPDX-License-Identifier: Apache-2.0
//
// What the stand-in driver knows: its configuration, contexts, memory and streams, what is to fail,
// and what was left behind. Included by driver.cc alone.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <sys/mman.h>

#include "fiber.h"

using CUresult = int;
enum : CUresult {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
  INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_PTX = 218,
  UNSUPPORTED_PTX_VERSION = 222, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
  ILLEGAL_ADDRESS_ = 700, MISALIGNED_ADDRESS = 716, LAUNCH_FAILED = 719
};

namespace {

struct Context {
  int refs = 0;
  CUresult sticky = SUCCESS;
};
struct Function {
  const emu::KernelEntry* kernel;
  unsigned dynamic_shared = 48 << 10;
};
struct Module { std::map<std::string, Function> functions; };
struct Stream { std::deque<std::function<CUresult()>> queue; };
struct Event {
  bool recorded = false, done = false;
  double ms = 0;
};
struct Allocation { size_t bytes; char* map; size_t map_bytes; };

struct Config {
  int version = 12020, devices = 1, ptx = 80, init = 0, sm = 75;
  size_t memory = size_t{1} << 31;
  std::string skip;  // a kernel that does nothing, for a self-test that fails
} config;

std::recursive_mutex lock;
bool initialised;
Context primary;
thread_local std::vector<Context*> context_stack;
std::map<uintptr_t, Allocation> device;
std::map<uintptr_t, size_t> host;
size_t used;
std::vector<Stream*> streams;
int events, modules, leaked, launches;
long calls, fail_at;
CUresult fail_code;
std::string why, failed_call;
unsigned seed;

constexpr size_t page = 4096;
constexpr unsigned char guard = 0xc5;

// A context that is lost does no further work.
CUresult lose(CUresult e) {
  primary.sticky = e;
  for (Stream* x : streams) x->queue.clear();
  return e;
}

// What every entry does first. Returns the error to give, or SUCCESS.
CUresult enter(const char* name, bool need_context) {
  calls++;
  if (calls == fail_at) {
    failed_call = name;
    if (fail_code == ILLEGAL_ADDRESS_ || fail_code == LAUNCH_FAILED) lose(fail_code);
    return fail_code;
  }
  if (!initialised) return NOT_INITIALIZED;
  if (!need_context) return SUCCESS;
  if (context_stack.empty() || !context_stack.back()) return INVALID_CONTEXT;
  return context_stack.back()->sticky;
}

#define API extern "C" __attribute__((visibility("default"))) CUresult
#define ENTER(need_context)                       \
  std::lock_guard<std::recursive_mutex> hold(lock); \
  if (CUresult e = enter(__func__, need_context)) return e
// A call that gives something back gives it back and then reports the error, as a driver does
// with the error of earlier work.
#define RELEASE()                                   \
  std::lock_guard<std::recursive_mutex> hold(lock); \
  const CUresult result = enter(__func__, true)

CUresult drain(Stream* s) {
  while (!s->queue.empty()) {
    auto work = std::move(s->queue.front());
    s->queue.pop_front();
    if (CUresult e = work()) return lose(e);
  }
  return primary.sticky;
}

CUresult drain_all() {
  for (Stream* s : streams) {
    if (CUresult e = drain(s)) return e;
  }
  return primary.sticky;
}

bool known(Stream* s) {
  return std::find(streams.begin(), streams.end(), s) != streams.end();
}

bool in_device(uintptr_t p, size_t n) {
  auto it = device.upper_bound(p);
  if (it == device.begin()) return false;
  --it;
  return p + n <= it->first + it->second.bytes;
}

bool in_host(const void* p, size_t n) {
  auto it = host.upper_bound(reinterpret_cast<uintptr_t>(p));
  if (it == host.begin()) return false;
  --it;
  return reinterpret_cast<uintptr_t>(p) + n <= it->first + it->second;
}

// Checks the bytes around every allocation, and puts them right again.
bool guards_hold(const std::string& kernel) {
  for (auto& [p, a] : device) {
    char* const first = a.map + page;
    char* const last = a.map + a.map_bytes - page;
    char* const from = reinterpret_cast<char*>(p);
    bool ok = true;
    for (char* q = first; q < from; q++) ok &= static_cast<unsigned char>(*q) == guard;
    for (char* q = from + a.bytes; q < last; q++) ok &= static_cast<unsigned char>(*q) == guard;
    if (ok) continue;
    memset(first, guard, from - first);
    memset(from + a.bytes, guard, last - from - a.bytes);
    why = kernel + ": wrote outside of an allocation of " + std::to_string(a.bytes) + " bytes";
    return false;
  }
  return true;
}

// The size of the parameters of an entry of a PTX text, -1 where there is no such entry.
long ptx_param_bytes(const char* text, const std::string& name) {
  const std::string entry = ".entry " + name + "(";
  const char* p = strstr(text, entry.c_str());
  if (!p) return -1;
  const char* end = strchr(p, '{');
  const std::string param = name + "_param_0[";
  p = strstr(p, param.c_str());
  if (!p || (end && p > end)) return 0;
  return atol(p + param.size());
}

void free_everything() {
  for (auto& [p, a] : device) munmap(a.map, a.map_bytes);
  for (auto& [p, n] : host) munmap(reinterpret_cast<void*>(p), n);
  for (Stream* s : streams) delete s;
  device.clear();
  host.clear();
  streams.clear();
  events = modules = 0;
  used = 0;
}

void configure(const char* text) {
  std::string s = text ? text : "";
  for (size_t at = 0; at < s.size();) {
    const size_t end = std::min(s.find(',', at), s.size());
    const std::string item = s.substr(at, end - at);
    const size_t eq = item.find('=');
    at = end + 1;
    if (eq == std::string::npos) continue;
    const std::string key = item.substr(0, eq), value = item.substr(eq + 1);
    const long n = atol(value.c_str());
    if (key == "version") config.version = static_cast<int>(n);
    if (key == "devices") config.devices = static_cast<int>(n);
    if (key == "ptx") config.ptx = static_cast<int>(n);
    if (key == "init") config.init = static_cast<int>(n);
    if (key == "sm") config.sm = static_cast<int>(n);
    if (key == "memory") config.memory = static_cast<size_t>(n);
    if (key == "skip") config.skip = value;
  }
}

double now_ms() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

}  // namespace
