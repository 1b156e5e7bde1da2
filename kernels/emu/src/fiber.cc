// SPDX-License-Identifier: Apache-2.0
//
// Thread blocks run one after another; the threads of a block are fibers, switched where they
// meet: at warp collectives and barriers. The last to arrive resolves a collective.
//
// Found this way: barriers that not all threads reach, lanes of one mask in different
// collectives, collectives that never complete, missing barriers (through shuffled schedules),
// reads of shared memory that was not written (it starts as NaNs), wild and misaligned accesses.
// Not found: races that need true concurrency, and what depends on the order of memory.
#include "fiber.h"

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <sys/mman.h>

namespace emu {

Fiber* current;
Launch launch;
alignas(128) unsigned char shared[max_shared];

namespace {

void* scheduler_sp;
std::vector<Fiber> fibers;
unsigned count;             // of threads in the block
unsigned finished, waiting; // at their end, at a barrier
uint32_t arrived[32];       // lanes in a collective, by warp
unsigned shuffle_seed;
size_t shared_bytes_now;      // of the launch
const KernelEntry* kernel;
const void* kernel_params;
std::string cause;
sigjmp_buf fault_jump;
volatile bool in_kernel;

// A little more than a power of two, so that stacks do not fall on the same cache sets.
constexpr size_t stack_bytes = (32 << 10) + 832;
char* stacks;
size_t stacks_count;

extern "C" void kvist_emu_switch(void** save, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl kvist_emu_switch
.hidden kvist_emu_switch
kvist_emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  popq %rcx
  jmpq *%rcx
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl kvist_emu_switch
.hidden kvist_emu_switch
kvist_emu_switch:
  sub sp, sp, #160
  stp x19,x20,[sp,#0]; stp x21,x22,[sp,#16]; stp x23,x24,[sp,#32]; stp x25,x26,[sp,#48]
  stp x27,x28,[sp,#64]; stp x29,x30,[sp,#80]
  stp d8,d9,[sp,#96]; stp d10,d11,[sp,#112]; stp d12,d13,[sp,#128]; stp d14,d15,[sp,#144]
  mov x9, sp
  str x9,[x0]
  mov sp, x1
  ldp x19,x20,[sp,#0]; ldp x21,x22,[sp,#16]; ldp x23,x24,[sp,#32]; ldp x25,x26,[sp,#48]
  ldp x27,x28,[sp,#64]; ldp x29,x30,[sp,#80]
  ldp d8,d9,[sp,#96]; ldp d10,d11,[sp,#112]; ldp d12,d13,[sp,#128]; ldp d14,d15,[sp,#144]
  add sp, sp, #160
  ret
)");
#else
#error "no fiber switch for this processor"
#endif

}  // namespace

[[noreturn]] void trap(const char* why) {
  cause = why;
  siglongjmp(fault_jump, TRAP);
}

unsigned schedule_seed() { return shuffle_seed; }
size_t shared_size() { return shared_bytes_now; }

namespace {

// Gives way to the next thread that can run, or to the scheduler.
void give_way() {
  Fiber* c = current;
  if (shuffle_seed == 0) {
    Fiber* next = c + 1;
    if (next < fibers.data() + count && next->state == Fiber::READY) {
      current = next;
      kvist_emu_switch(&c->sp, next->sp);
      return;
    }
  }
  kvist_emu_switch(&c->sp, scheduler_sp);
}

void fiber_main() {
  kernel->call(kernel_params);
  current->state = Fiber::DONE;
  finished++;
  give_way();
  abort();
}

void prepare(unsigned i) {
  Fiber& f = fibers[i];
  f.state = Fiber::READY;
  f.lane = i & 31;
  f.warp = i >> 5;
  const unsigned x = launch.threads.x, y = launch.threads.y;
  f.tid = {i % x, i / x % y, i / x / y};
  const uintptr_t top = reinterpret_cast<uintptr_t>(stacks + (i + 1) * stack_bytes) & ~15ul;
#if defined(__x86_64__)
  void** s = reinterpret_cast<void**>(top - 8);
  *--s = reinterpret_cast<void*>(fiber_main);
  for (int k = 0; k < 6; k++) *--s = nullptr;
#else
  void** s = reinterpret_cast<void**>(top - 160);
  memset(s, 0, 160);
  s[11] = reinterpret_cast<void*>(fiber_main);
#endif
  f.sp = s;
}

// Lets the threads that stand at the barrier go on, when all that live do.
bool release_barrier() {
  if (waiting == 0 || finished + waiting != count) return false;
  int line = -1;
  for (unsigned i = 0; i < count; i++) {
    Fiber& f = fibers[i];
    if (f.state != Fiber::BLOCK_WAIT) continue;
    if (line >= 0 && line != f.line) trap("__syncthreads reached at different places");
    line = f.line;
  }
  for (unsigned i = 0; i < count; i++) {
    if (fibers[i].state == Fiber::BLOCK_WAIT) fibers[i].state = Fiber::READY;
  }
  waiting = 0;
  return true;
}

void run_block(size_t shared_bytes) {
  finished = waiting = 0;
  memset(arrived, 0, sizeof arrived);
  memset(shared, 0xff, shared_bytes);  // NaNs
  shared_bytes_now = shared_bytes;
  reset_copies(count);
  for (unsigned i = 0; i < count; i++) prepare(i);
  unsigned r = shuffle_seed;
  while (finished < count) {
    bool progress = false;
    unsigned at = 0, step = 1;
    if (shuffle_seed) {  // start anywhere, in either direction
      r = r * 1664525u + 1013904223u;
      at = (r >> 8) % count;
      step = (r >> 3 & 1) ? count - 1 : 1;
    }
    for (unsigned k = 0; k < count; k++, at = (at + step) % count) {
      if (fibers[at].state != Fiber::READY) continue;
      current = &fibers[at];
      kvist_emu_switch(&scheduler_sp, current->sp);
      progress = true;
    }
    if (release_barrier()) progress = true;
    if (!progress) trap("a collective or barrier that never completes");
  }
}

struct sigaction old_actions[3];
const int caught[3] = {SIGSEGV, SIGBUS, SIGILL};

void on_signal(int sig, siginfo_t* info, void* context) {
  if (in_kernel) {
    char text[80];
    snprintf(text, sizeof text, sig == SIGILL ? "misaligned access or trap at %p"
                                              : "illegal address %p", info->si_addr);
    cause = text;
    siglongjmp(fault_jump, sig == SIGILL ? MISALIGNED : ILLEGAL_ADDRESS);
  }
  struct sigaction& old = old_actions[sig == SIGSEGV ? 0 : sig == SIGBUS ? 1 : 2];
  if (old.sa_flags & SA_SIGINFO) {
    old.sa_sigaction(sig, info, context);
  } else if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) {
    old.sa_handler(sig);
  } else {
    sigaction(sig, &old, nullptr);
    raise(sig);
  }
}

void catch_signals() {
  for (int i = 0; i < 3; i++) {
    struct sigaction a = {};
    a.sa_sigaction = on_signal;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigfillset(&a.sa_mask);
    sigaction(caught[i], &a, &old_actions[i]);
  }
}

}  // namespace

std::vector<KernelEntry>& kernels() {
  static std::vector<KernelEntry> all;
  return all;
}

void register_kernel(const char* name, void (*call)(const void*), size_t size) {
  kernels().push_back({name, call, size});
}

uint64_t warp_collective(Op op, uint32_t mask, uint64_t value, int arg) {
  Fiber* f = current;
  Fiber* warp = fibers.data() + f->warp * 32;
  const unsigned n = std::min(32u, count - f->warp * 32);
  if (n < 32) mask &= (1u << n) - 1;
  if (!(mask >> f->lane & 1)) trap("a lane calls a collective whose mask leaves it out");
  f->op = op;
  f->mask = mask;
  f->value = value;
  f->arg = arg;
  f->state = Fiber::WARP_WAIT;
  uint32_t& here = arrived[f->warp];
  here |= 1u << f->lane;
  if ((here & mask) != mask) {
    give_way();
    return f->result;
  }
  here &= ~mask;
  uint64_t votes = 0;
  for (unsigned l = 0; l < n; l++) {
    if (!(mask >> l & 1)) continue;
    if (warp[l].mask != mask || warp[l].op != op) {
      trap("lanes of one mask are in different collectives");
    }
    votes |= (warp[l].value & 1) << l;
  }
  for (unsigned l = 0; l < n; l++) {
    if (!(mask >> l & 1)) continue;
    Fiber& g = warp[l];
    switch (op) {
      case SHFL_XOR: {
        const unsigned from = l ^ static_cast<unsigned>(g.arg);
        g.result = from < n && (mask >> from & 1) ? warp[from].value : 0xdeadbeefdeadbeefull;
        break;
      }
      case BALLOT: g.result = votes; break;
      case ANY: g.result = votes != 0; break;
      case ALL: g.result = votes == mask; break;
      case SYNCWARP: g.result = 0; break;
    }
    g.state = Fiber::READY;
  }
  return f->result;
}

const void* const* show(const void* mine) {
  static const void* shown[32][32];  // by warp and lane; fibers' stacks are plain memory
  Fiber* f = current;
  shown[f->warp][f->lane] = mine;
  warp_collective(SYNCWARP, 0xffffffffu, 0, 0);
  return shown[f->warp];
}

void block_barrier(int line) {
  current->line = line;
  current->state = Fiber::BLOCK_WAIT;
  waiting++;
  give_way();
}

Fault run(const KernelEntry& k, dim3 grid, dim3 threads, const void* params, size_t shared_bytes,
          unsigned seed, std::string* why) {
  static std::once_flag once;
  std::call_once(once, catch_signals);
  count = threads.x * threads.y * threads.z;
  if (fibers.size() < count) fibers.resize(count);
  if (stacks_count < count) {
    if (stacks) munmap(stacks, stacks_count * stack_bytes);
    stacks = static_cast<char*>(mmap(nullptr, count * stack_bytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) abort();
    stacks_count = count;
  }
  launch.grid = grid;
  launch.threads = threads;
  kernel = &k;
  kernel_params = params;
  shuffle_seed = seed;
  const int fault = sigsetjmp(fault_jump, 1);
  if (fault == 0) {
    in_kernel = true;
    for (unsigned z = 0; z < grid.z; z++) {
      for (unsigned y = 0; y < grid.y; y++) {
        for (unsigned x = 0; x < grid.x; x++) {
          launch.block = {x, y, z};
          run_block(shared_bytes);
        }
      }
    }
  } else {
    *why = k.name + ": " + cause;
  }
  in_kernel = false;
  current = nullptr;
  return static_cast<Fault>(fault);
}

}  // namespace emu
