// The machine behind cuda_host.h: threads of a block are fibers that run until they wait for each
// other. Compiled once, and linked to every kernel.

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "fibers.h"
#include "machine.h"
#include "races.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

// Static shared memory lies in a section of its own: that of the block that runs. Others keep
// theirs aside. The address sanitizer leaves named sections alone, so it gets none.
#if !defined(FG_SANITIZE) && !defined(FG_RACES)
#define FG_FAULTS 1  // are reported here; under a sanitizer they end the process
#endif
#ifndef FG_SANITIZE
extern "C" {
extern char __start_fg_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_fg_shared[] __attribute__((weak, visibility("hidden")));
}
#endif

namespace fg {

struct Fiber {
    State state;
    int line;  // of the operation that it waits in
    Operation operation;
    unsigned mask;
    int source;  // lane that it reads
    u64 in, out;
    char* stack;
    bool started;
    Context context;
    Thread thread;
};

struct Block {
    dim3 index;
    std::vector<Fiber> fibers;
    std::vector<int> turn;  // the order of threads in this pass over them
    std::size_t next, end;  // whose turn it is, and whose turn does not come in this pass
    bool ran;               // whether a thread did anything in this pass, or may in another
    int left = 0;           // threads that have not returned
    char* shared;           // dynamic shared memory, which ends at a page that cannot be touched
    std::vector<char> aside;  // static shared memory, while another block runs
    Meetings meetings;
};

struct Machine {
    std::vector<Block> blocks;  // that are under way
    Block* block;               // of them, the one that runs
    int current;                // its thread that runs
    std::vector<char*> own_stacks;
    std::vector<char*>* stacks = &own_stacks;  // free ones, of all modules in a process
    Body body;
    Order order;
    u64 random;
    std::size_t shared_bytes;
    char message[600];
    const void* bad_address;
    sigjmp_buf escape;
    Context scheduler;
    void* scheduler_thread;
    u64 finished;  // where threads say that they have
};
Machine machine;

// At most so many blocks are under way, and so many threads of them: what a multiprocessor holds.
// What a sanitizer knows of shared memory cannot be put aside.
#ifndef FG_FAULTS
const unsigned BLOCKS = 1;
#else
const unsigned BLOCKS = 4;
#endif
const unsigned THREADS = 2048;

inline Fiber& fiber_of(int index) { return machine.block->fibers[index]; }

inline u64 draw(u64 below) {
    machine.random = machine.random * 6364136223846793005ull + 1442695040888963407ull;
    return (machine.random >> 33) % below;
}

inline void to_scheduler() {
    become(machine.scheduler_thread);
    switch_context(fiber_of(machine.current).context, machine.scheduler);
}

inline void fiber_main() {
    machine.body();
    done(&machine.finished);
    fiber_of(machine.current).state = DONE;
    to_scheduler();
    std::abort();
}

inline void finish(Fiber& fiber) {
    fiber.thread.end();
    machine.stacks->push_back(fiber.stack);
}

inline void resume(int index) {
    Fiber& fiber = fiber_of(index);
    machine.current = index;
    const unsigned x = blockDim.x, y = blockDim.y, i = unsigned(index);
    threadIdx = {i % x, i / x % y, i / (x * y)};
    if (!fiber.started) {
        fiber.started = true;
        fiber.stack = new_stack(*machine.stacks);
        forget(fiber.stack + PAGE, STACK - PAGE);
        make_context(fiber.context, fiber.stack, fiber_main);
        fiber.thread.begin();
    }
    become(fiber.thread.self);
    switch_context(machine.scheduler, fiber.context);
    if (fiber.state == DONE) finish(fiber);
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
    Fiber& first = fiber_of(index);
    const int base = index / 32 * 32, threads = int(machine.block->fibers.size());
    for (int lane = 0; lane < 32; ++lane) {
        if (!(first.mask >> lane & 1)) continue;
        if (base + lane >= threads) {
            say(index, "line %d names lane %d, which the block does not have", first.line, lane);
            return false;
        }
        const Fiber& other = fiber_of(base + lane);
        if (other.state != AT_WARP || other.line != first.line || other.mask != first.mask ||
            other.operation != first.operation)
            return false;
    }
    u64 ballot = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (first.mask >> lane & 1) ballot |= u64(fiber_of(base + lane).in != 0) << lane;
    for (int lane = 0; lane < 32; ++lane) {
        if (!(first.mask >> lane & 1)) continue;
        Fiber& fiber = fiber_of(base + lane);
        if (fiber.operation == GATHER) {
            if (!(first.mask >> fiber.source & 1)) {
                say(base + lane, "line %d reads lane %d, which takes no part", fiber.line,
                    fiber.source);
                return false;
            }
            fiber.out = fiber_of(base + fiber.source).in;
        } else {
            fiber.out = ballot;
        }
    }
    const unsigned mask = first.mask;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) fiber_of(base + lane).state = READY;
    if (first.operation == SYNC) machine.block->meetings.complete(index / 32, mask);
    return true;
}

// Let the block go on, if all its threads wait at the same barrier.
inline bool release_block() {
    u64 count = 0;
    std::vector<Fiber>& fibers = machine.block->fibers;
    for (const Fiber& fiber : fibers) {
        if (fiber.state != AT_BARRIER || fiber.line != fibers[0].line) return false;
        count += fiber.in != 0;
    }
    for (Fiber& fiber : fibers) {
        fiber.out = count;
        fiber.state = READY;
    }
    machine.block->meetings.complete(-1, 0);
    return true;
}

inline void deadlock() {
    const int threads = int(machine.block->fibers.size());
    int one = -1;
    for (int i = 0; i < threads && one < 0; ++i)
        if (fiber_of(i).state != DONE) one = i;
    int other = -1;
    for (int i = 0; i < threads && other < 0; ++i) {
        const Fiber &a = fiber_of(one), &b = fiber_of(i);
        if (a.state != b.state || a.line != b.line || (a.state == AT_WARP && a.mask != b.mask))
            other = i;
    }
    const Fiber &a = fiber_of(one), &b = fiber_of(other < 0 ? one : other);
    say(one, "%s (line %d) for ever: thread %d %s (line %d)", doing(a), a.line, other, doing(b),
        b.state == DONE ? 0 : b.line);
}

u64 wait(State state, int line, Operation operation, unsigned mask, int source, u64 in) {
    Fiber& fiber = fiber_of(machine.current);
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
    const bool orders = operation == SYNC;
    const int warp = state == AT_BARRIER ? -1 : machine.current / 32;
    Meetings& meetings = machine.block->meetings;
    u64* const place =
        orders ? meetings.arrive(warp, mask, fiber.thread.self, machine.scheduler_thread) : nullptr;
    to_scheduler();
    if (orders) meetings.leave(place);
    return fiber.out;
}

// Other threads and blocks may come first: where memory of all blocks is concerned, that matters.
inline void pause() {
    if (machine.order == SHUFFLED && draw(2)) to_scheduler();
}
void fence() {
    pause();
    fiber_of(machine.current).thread.fence();
}
void atomic(void* place) {
    pause();
    fiber_of(machine.current).thread.atomic(place, machine.scheduler_thread);
}

int own_lane() { return machine.current % 32; }
void* dynamic_shared() { return machine.block->shared; }
void refuse(const char* wanted, const char* given) {
    machine.bad_address = nullptr;
    std::snprintf(machine.message, sizeof machine.message,
                  "the kernel takes (%s) and was given (%s)", wanted, given);
}

// -------------------------------------------------------------------------------- blocks and grids

// Make this the block that runs.
inline void enter(Block& block) {
    blockIdx = block.index;
    if (machine.block == &block) return;
#ifndef FG_SANITIZE
    const std::size_t size = __stop_fg_shared - __start_fg_shared;
    if (machine.block && machine.block->left)
        machine.block->aside.assign(__start_fg_shared, __stop_fg_shared);
    if (block.left && size) std::memcpy(__start_fg_shared, block.aside.data(), size);
#endif
    machine.block = &block;
}

// Begin a pass over the threads. Now and then some are left out, so that others get ahead.
inline void take_turns(Block& block) {
    const int threads = int(block.turn.size());
    block.next = 0;
    block.end = threads;
    block.ran = false;
    if (machine.order != SHUFFLED) return;
    for (int i = threads - 1; i > 0; --i) std::swap(block.turn[i], block.turn[draw(u64(i) + 1)]);
    if (draw(4)) return;
    block.end = 1 + draw(threads);
    block.ran = true;
}

// Fill new shared memory with what is NaN in every dtype.
inline void fill(char* memory, std::size_t size) {
    forget(memory, size);
    if (size) std::memset(memory, 0xff, size);
    forget(memory, size);
}

inline void begin(Block& block, u64 number) {
    block.index = {unsigned(number % gridDim.x), unsigned(number / gridDim.x % gridDim.y),
                   unsigned(number / gridDim.x / gridDim.y)};
    enter(block);
    fill(block.shared, machine.shared_bytes);
#ifndef FG_SANITIZE
    fill(__start_fg_shared, __stop_fg_shared - __start_fg_shared);
#endif
    block.meetings = Meetings();
    const int threads = int(block.fibers.size());
    block.left = threads;
    for (Fiber& fiber : block.fibers) {
        fiber.state = READY;
        fiber.started = false;
    }
    block.turn.resize(threads);
    for (int i = 0; i < threads; ++i)
        block.turn[i] = machine.order == DESCENDING ? threads - 1 - i : i;
    take_turns(block);
}

// Give so many threads of a block a turn, up to the end of this pass over them; false: an error.
inline bool advance(Block& block, u64& turns) {
    const std::size_t threads = block.turn.size();
    for (; turns && block.next < block.end; --turns) {
        const int index = block.turn[block.next++];
        if (fiber_of(index).state != READY) continue;
        resume(index);
        block.ran = true;
        if (fiber_of(index).state == FAILED) return false;
        if (fiber_of(index).state == DONE) --block.left;
    }
    if (block.next < block.end || !block.left) return true;
    bool released = release_block();
    for (int i = 0; i < int(threads); ++i)
        if (fiber_of(i).state == AT_WARP) released |= release_warp(i);
    if (machine.message[0]) return false;
    if (!released && !block.ran) {
        deadlock();
        return false;
    }
    take_turns(block);
    return true;
}

// The numbers from 0 up to `count`, in an order that needs no memory.
struct Numbers {
    u64 count, factor = 1, start = 0, given = 0;
    explicit Numbers(u64 count) : count(count) {
        if (machine.order == DESCENDING) factor = count - 1, start = count - 1;
        if (machine.order != SHUFFLED || count < 2) return;
        start = draw(count);
        do factor = 1 + draw(count - 1);
        while (std::gcd(factor, count) != 1);
    }
    bool more() const { return given < count; }
    u64 next() {
        return u64((static_cast<unsigned __int128>(factor) * given++ + start) % count);
    }
};

// With FG_FLUSH, a module does as one that was compiled with -ftz=true: what is subnormal in float32
// counts as zero, coming in and going out. The processor then does the same to float64, which a GPU
// never does: of a module with FG_FLUSH only float32 can be trusted.
struct Flushing {
#ifdef FG_FLUSH
    const unsigned before = __builtin_ia32_stmxcsr();
    Flushing() { __builtin_ia32_ldmxcsr(before | 0x8040); }
    ~Flushing() { __builtin_ia32_ldmxcsr(before); }
#endif
};

inline void run_blocks(u64 first, u64 end) {
    if (first >= end) return;
    Numbers numbers(end - first);
    std::vector<Block*> busy;
    for (Block& block : machine.blocks)
        if (numbers.more()) {
            begin(block, first + numbers.next());
            busy.push_back(&block);
        }
    while (!busy.empty()) {
        const std::size_t turn = busy.size() > 1 ? draw(busy.size()) : 0;
        Block& block = *busy[turn];
        enter(block);
        // A few threads, or most of what the block has to do, before another block comes.
        u64 turns = busy.size() > 1 ? (1 + draw(block.turn.size())) << draw(6) : ~u64(0);
        while (turns && block.left)
            if (!advance(block, turns)) return;
        if (block.left) continue;
        if (numbers.more())
            begin(block, first + numbers.next());
        else
            busy.erase(busy.begin() + turn);
    }
}

inline void on_fault(int signal, siginfo_t* info, void*) {
    machine.bad_address = signal == SIGSEGV || signal == SIGBUS ? info->si_addr : nullptr;
    if (machine.bad_address)
        say(machine.current, "access at %p, outside of what it may touch", info->si_addr);
    else
        say(machine.current, "misaligned access, index past an array, or another undefined thing");
    siglongjmp(machine.escape, 1);
}

void run_grid(Body body, const Launch& launch) {
    static char alternative[1 << 16];
    const unsigned* shape = launch.shape;
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    const u64 blocks = u64(gridDim.x) * gridDim.y * gridDim.z;
    const u64 end = launch.last_block < blocks ? launch.last_block : blocks;
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    machine.body = body;
    machine.order = Order(launch.order);
    machine.random = launch.seed;
    for (int k = 0; k < 8; ++k) draw(1);  // so that small seeds differ at once
    machine.message[0] = 0;
    machine.bad_address = nullptr;
    machine.block = nullptr;
    machine.scheduler_thread = this_thread();
    machine.shared_bytes = (launch.shared + 15) / 16 * 16;  // what a launch rounds to
    const std::size_t pages = (machine.shared_bytes + PAGE - 1) / PAGE * PAGE, step = pages + PAGE;
    unsigned under_way = machine.order == SHUFFLED ? THREADS / threads : 1;
    if (under_way > BLOCKS) under_way = BLOCKS;
    machine.blocks.resize(under_way ? under_way : 1);
    char* memory = static_cast<char*>(mmap(nullptr, step * machine.blocks.size(),
                                           PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    char* place = memory;
    for (Block& block : machine.blocks) {
        block.left = 0;
        block.fibers.assign(threads, Fiber());
        mprotect(place + pages, PAGE, PROT_NONE);
        block.shared = place + pages - machine.shared_bytes;
        place += step;
    }
    stack_t mine = {}, old_stack;
    mine.ss_sp = alternative;
    mine.ss_size = sizeof alternative;
    sigaltstack(&mine, &old_stack);
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
    struct sigaction action = {}, old[5];
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    const Flushing flushing;
#ifdef FG_FAULTS
    for (int k = 0; k < 5; ++k) sigaction(signals[k], &action, &old[k]);
    if (!sigsetjmp(machine.escape, 1))
#endif
        run_blocks(launch.first_block, end);
#ifdef FG_FAULTS
    for (int k = 0; k < 5; ++k) sigaction(signals[k], &old[k], nullptr);
#endif
    all_done(&machine.finished);
    sigaltstack(&old_stack, nullptr);
    munmap(memory, step * machine.blocks.size());
    if (machine.message[0])  // fibers were left behind: their stacks are free again
        for (Block& block : machine.blocks)
            for (Fiber& fiber : block.fibers)
                if (fiber.started && fiber.state != DONE) finish(fiber);
}

}  // namespace fg

extern "C" void* fg_stacks() { return fg::machine.stacks; }
extern "C" void fg_share_stacks(void* stacks) {
    fg::machine.stacks = static_cast<std::vector<char*>*>(stacks);
}
extern "C" const void* fg_bad_address() { return fg::machine.bad_address; }
extern "C" const char* fg_message() { return fg::machine.message; }
