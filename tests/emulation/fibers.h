// Fibers: each has a stack of its own, and runs until it gives the processor back to the scheduler.

#pragma once

#include <cstddef>
#include <cstdlib>
#include <sys/mman.h>
#include <vector>

#include "machine.h"

#if defined(__x86_64__) && !defined(FG_SANITIZE)
#define FG_SWITCH_BY_HAND 1
#else
#include <ucontext.h>
#endif

namespace fg {

const std::size_t STACK = std::size_t(1) << 18, PAGE = 4096;

#ifdef FG_SWITCH_BY_HAND
typedef void* Context;  // a stack pointer
extern "C" void fg_switch(Context* from, Context to);
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
inline void switch_context(Context& from, Context& to) { fg_switch(&from, to); }

// What runs `main` on this stack, once it is switched to.
inline void make_context(Context& made, char* stack, void (*main)()) {
    void** top = reinterpret_cast<void**>(stack + STACK - 64);
    *--top = nullptr;  // where a caller's address would be: keeps the stack's alignment
    *--top = reinterpret_cast<void*>(main);
    for (int k = 0; k < 6; ++k) *--top = nullptr;
    made = top;
}
#else
typedef ucontext_t Context;
inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
inline void make_context(Context& made, char* stack, void (*main)()) {
    getcontext(&made);
    made.uc_stack.ss_sp = stack + PAGE;
    made.uc_stack.ss_size = STACK - PAGE;
    made.uc_link = nullptr;
    makecontext(&made, main, 0);
}
#endif

inline char* new_stack(std::vector<char*>& free) {
    if (!free.empty()) {
        char* stack = free.back();
        free.pop_back();
        return stack;
    }
    void* memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    mprotect(memory, PAGE, PROT_NONE);
    return static_cast<char*>(memory);
}

}  // namespace fg
