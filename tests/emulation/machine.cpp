// The machine behind cuda_host.h: threads of a block are fibers that run until they wait for each
// other. Compiled once, and linked to every kernel.

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <utility>
#include <vector>

#include "machine.h"

#if defined(__x86_64__) && !defined(FG_SANITIZE)
#define FG_SWITCH_BY_HAND 1
#else
#include <ucontext.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

#ifndef FG_SANITIZE
extern "C" {
extern char __start_fg_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_fg_shared[] __attribute__((weak, visibility("hidden")));
}
#endif

namespace fg {

const std::size_t STACK = std::size_t(1) << 18, PAGE = 4096;

struct Fiber {
    State state;
    int line;                 // of the operation that it waits in
    Operation operation;
    unsigned mask;
    int source;               // lane that it reads
    u64 in, out;
    char* stack;
    bool started;
#ifdef FG_SWITCH_BY_HAND
    void* stack_pointer;
#else
    ucontext_t context;
#endif
};

struct Machine {
    std::vector<Fiber> fibers;
    std::vector<char*> own_stacks;
    std::vector<char*>* stacks = &own_stacks;  // free ones, of all modules in a process
    int current;
    Body body;
    char* shared;
    std::size_t shared_bytes;
    char message[600];
    const void* bad_address;
    u64 first_block = 0, last_block = ~u64(0);  // those that run
    sigjmp_buf escape;
#ifdef FG_SWITCH_BY_HAND
    void* scheduler;
#else
    ucontext_t scheduler;
#endif
};
Machine machine;

#ifdef FG_SWITCH_BY_HAND
extern "C" void fg_switch(void** from, void* to);
asm(R"(
.text
.local fg_switch
.type fg_switch, @function
fg_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size fg_switch, .-fg_switch
)");
#endif

inline void to_scheduler() {
    Fiber& fiber = machine.fibers[machine.current];
#ifdef FG_SWITCH_BY_HAND
    fg_switch(&fiber.stack_pointer, machine.scheduler);
#else
    swapcontext(&fiber.context, &machine.scheduler);
#endif
}

inline void fiber_main() {
    machine.body();
    machine.fibers[machine.current].state = DONE;
    to_scheduler();
    std::abort();
}

inline char* new_stack() {
    if (!machine.stacks->empty()) {
        char* stack = machine.stacks->back();
        machine.stacks->pop_back();
        return stack;
    }
    void* memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    mprotect(memory, PAGE, PROT_NONE);
    return static_cast<char*>(memory);
}

inline void resume(int index) {
    Fiber& fiber = machine.fibers[index];
    machine.current = index;
    const unsigned x = blockDim.x, y = blockDim.y, i = unsigned(index);
    threadIdx = {i % x, i / x % y, i / (x * y)};
    fiber.state = READY;
    if (!fiber.started) {
        fiber.started = true;
        fiber.stack = new_stack();
#ifdef FG_SWITCH_BY_HAND
        void** top = reinterpret_cast<void**>(fiber.stack + STACK - 64);
        *--top = nullptr;  // where a caller's address would be: keeps the stack's alignment
        *--top = reinterpret_cast<void*>(&fiber_main);
        for (int k = 0; k < 6; ++k) *--top = nullptr;
        fiber.stack_pointer = top;
#else
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack + PAGE;
        fiber.context.uc_stack.ss_size = STACK - PAGE;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
#endif
    }
#ifdef FG_SWITCH_BY_HAND
    fg_switch(&machine.scheduler, fiber.stack_pointer);
#else
    swapcontext(&machine.scheduler, &fiber.context);
#endif
    if (fiber.state == DONE) machine.stacks->push_back(fiber.stack);
}

__attribute__((format(printf, 2, 3))) void say(int index, const char* format, ...) {
    if (machine.message[0]) return;
    const unsigned i = unsigned(index), x = blockDim.x, y = blockDim.y;
    int length = std::snprintf(machine.message, sizeof machine.message,
                               "block (%u, %u, %u), thread (%u, %u, %u): ", blockIdx.x, blockIdx.y,
                               blockIdx.z, i % x, i / x % y, i / (x * y));
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(machine.message + length, sizeof machine.message - length, format, arguments);
    va_end(arguments);
}

// ------------------------------------------------------------------ waiting for the other threads

inline const char* doing(const Fiber& fiber) {
    if (fiber.state == DONE) return "has returned";
    return fiber.state == AT_BARRIER ? "waits at a barrier" : "waits in a warp operation";
}

// Let the warp of this waiting thread go on, if all lanes that it names have come.
inline bool release_warp(int index) {
    Fiber& first = machine.fibers[index];
    const int base = index / 32 * 32, threads = int(machine.fibers.size());
    for (int lane = 0; lane < 32; ++lane) {
        if (!(first.mask >> lane & 1)) continue;
        if (base + lane >= threads) {
            say(index, "line %d names lane %d, which the block does not have", first.line, lane);
            return false;
        }
        const Fiber& other = machine.fibers[base + lane];
        if (other.state != AT_WARP || other.line != first.line || other.mask != first.mask ||
            other.operation != first.operation)
            return false;
    }
    u64 ballot = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (first.mask >> lane & 1) ballot |= u64(machine.fibers[base + lane].in != 0) << lane;
    for (int lane = 0; lane < 32; ++lane) {
        if (!(first.mask >> lane & 1)) continue;
        Fiber& fiber = machine.fibers[base + lane];
        if (fiber.operation == GATHER) {
            if (!(first.mask >> fiber.source & 1)) {
                say(base + lane, "line %d reads lane %d, which takes no part", fiber.line,
                    fiber.source);
                return false;
            }
            fiber.out = machine.fibers[base + fiber.source].in;
        } else {
            fiber.out = ballot;
        }
    }
    const unsigned mask = first.mask;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) machine.fibers[base + lane].state = READY;
    return true;
}

// Let the block go on, if all its threads wait at the same barrier.
inline bool release_block() {
    u64 count = 0;
    for (const Fiber& fiber : machine.fibers) {
        if (fiber.state != AT_BARRIER || fiber.line != machine.fibers[0].line) return false;
        count += fiber.in != 0;
    }
    for (Fiber& fiber : machine.fibers) {
        fiber.out = count;
        fiber.state = READY;
    }
    return true;
}

inline void deadlock() {
    const int threads = int(machine.fibers.size());
    int one = -1;
    for (int i = 0; i < threads && one < 0; ++i)
        if (machine.fibers[i].state != DONE) one = i;
    int other = -1;
    for (int i = 0; i < threads && other < 0; ++i) {
        const Fiber &a = machine.fibers[one], &b = machine.fibers[i];
        if (a.state != b.state || a.line != b.line || (a.state == AT_WARP && a.mask != b.mask))
            other = i;
    }
    const Fiber &a = machine.fibers[one], &b = machine.fibers[other < 0 ? one : other];
    say(one, "%s (line %d) for ever: thread %d %s (line %d)", doing(a), a.line, other, doing(b),
        b.state == DONE ? 0 : b.line);
}

inline bool run_block(int order, u64& random) {
    const int threads = int(machine.fibers.size());
    std::vector<int> turn(threads);
    for (int i = 0; i < threads; ++i) turn[i] = order == 1 ? threads - 1 - i : i;
    if (order == 2)
        for (int i = threads - 1; i > 0; --i) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(turn[i], turn[int((random >> 33) % unsigned(i + 1))]);
        }
    for (Fiber& fiber : machine.fibers) {
        fiber.state = READY;
        fiber.started = false;
    }
    int left = threads;
    while (left) {
        bool ran = false;
        for (int index : turn) {
            if (machine.fibers[index].state != READY) continue;
            resume(index);
            ran = true;
            if (machine.fibers[index].state == FAILED) return false;
            if (machine.fibers[index].state == DONE) --left;
        }
        if (!left) break;
        bool released = release_block();
        for (int i = 0; i < threads; ++i)
            if (machine.fibers[i].state == AT_WARP) released |= release_warp(i);
        if (machine.message[0]) return false;
        if (!released && !ran) {
            deadlock();
            return false;
        }
    }
    return true;
}

u64 wait(State state, int line, Operation operation, unsigned mask, int source, u64 in) {
    Fiber& fiber = machine.fibers[machine.current];
    if (state == AT_WARP && !(mask >> (machine.current % 32) & 1)) {
        say(machine.current, "line %d: its own lane is not in the mask", line);
        fiber.state = FAILED;
        to_scheduler();
    }
    fiber.state = state;
    fiber.line = line;
    fiber.operation = operation;
    fiber.mask = mask;
    fiber.source = source;
    fiber.in = in;
    to_scheduler();
    return machine.fibers[machine.current].out;
}

int own_lane() { return machine.current % 32; }
void* dynamic_shared() { return machine.shared; }
void refuse(const char* wanted, const char* given) {
    machine.bad_address = nullptr;
    std::snprintf(machine.message, sizeof machine.message,
                  "the kernel takes (%s) and was given (%s)", wanted, given);
}

// ------------------------------------------------------------------------------------- launching

inline void on_fault(int signal, siginfo_t* info, void*) {
    machine.bad_address = signal == SIGSEGV || signal == SIGBUS ? info->si_addr : nullptr;
    if (machine.bad_address)
        say(machine.current, "access at %p, outside of what it may touch", info->si_addr);
    else
        say(machine.current, "misaligned access, index past an array, or another undefined thing");
    siglongjmp(machine.escape, 1);
}

void run_grid(Body body, const unsigned* shape, unsigned long shared, int order) {
    static char alternative[1 << 16];
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    machine.fibers.assign(std::size_t(blockDim.x) * blockDim.y * blockDim.z, Fiber());
    machine.body = body;
    machine.message[0] = 0;
    machine.bad_address = nullptr;
    const std::size_t pages = (shared + PAGE - 1) / PAGE * PAGE;
    char* memory = static_cast<char*>(mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(memory + pages, PAGE, PROT_NONE);
    machine.shared_bytes = (shared + 15) / 16 * 16;  // what a launch rounds to
    machine.shared = memory + pages - machine.shared_bytes;
    stack_t mine = {}, old_stack;
    mine.ss_sp = alternative;
    mine.ss_size = sizeof alternative;
    sigaltstack(&mine, &old_stack);
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
    struct sigaction action = {}, old[5];
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
#ifndef FG_SANITIZE
    for (int k = 0; k < 5; ++k) sigaction(signals[k], &action, &old[k]);
#endif
    if (!sigsetjmp(machine.escape, 1)) {
        const unsigned long long blocks = 1ull * gridDim.x * gridDim.y * gridDim.z;
        u64 random = 12345;
        const u64 end = machine.last_block < blocks ? machine.last_block : blocks;
        for (u64 k = machine.first_block; k < end; ++k) {
            const u64 b = order ? machine.first_block + end - 1 - k : k;
            blockIdx = {unsigned(b % gridDim.x), unsigned(b / gridDim.x % gridDim.y),
                        unsigned(b / gridDim.x / gridDim.y)};
            std::memset(machine.shared, 0xff, machine.shared_bytes);
#ifndef FG_SANITIZE
            if (__start_fg_shared) std::memset(__start_fg_shared, 0xff, __stop_fg_shared - __start_fg_shared);
#endif
            if (!run_block(order, random)) break;
        }
    }
#ifndef FG_SANITIZE
    for (int k = 0; k < 5; ++k) sigaction(signals[k], &old[k], nullptr);
#endif
    sigaltstack(&old_stack, nullptr);
    munmap(memory, pages + PAGE);
    if (machine.message[0])  // fibers were left behind: their stacks are free again
        for (Fiber& fiber : machine.fibers)
            if (fiber.started && fiber.state != DONE) machine.stacks->push_back(fiber.stack);
}

}  // namespace fg

extern "C" void fg_only_blocks(unsigned long long first, unsigned long long last) {
    fg::machine.first_block = first;
    fg::machine.last_block = last;
}
extern "C" void* fg_stacks() { return fg::machine.stacks; }
extern "C" void fg_share_stacks(void* stacks) {
    fg::machine.stacks = static_cast<std::vector<char*>*>(stacks);
}
extern "C" const void* fg_bad_address() { return fg::machine.bad_address; }
extern "C" const char* fg_message() { return fg::machine.message; }
