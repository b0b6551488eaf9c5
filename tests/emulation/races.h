// What the thread sanitizer is told: each fiber is a thread of its own, and what orders the memory
// accesses of two of them is what CUDA says, and nothing else. So it does not matter in which order
// they happened to run, and blocks may run one after the other.
//
//   __syncthreads, __syncwarp  order what the threads that meet there did before and do after
//   __threadfence              orders with the fence of another thread, if an atomic operation came
//                              after the one, and another at the same place, which saw it, before
//                              the other (PTX: a release pattern and an acquire pattern). What
//                              other threads of the block did counts only if a barrier lies between
//   volatile accesses          are no races with each other, and order nothing
//   shuffles and votes         order nothing
//   launches                   come after each other
//
// Without FG_RACES, all of this is nothing.

#pragma once

#include <map>
#include <utility>

#include "machine.h"

#ifdef FG_RACES
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_java_alloc(unsigned long, unsigned long);
int __tsan_atomic32_fetch_add(volatile int*, int, int);
long __tsan_atomic64_fetch_add(volatile long*, long, int);
short __tsan_atomic16_fetch_add(volatile short*, short, int);
char __tsan_atomic8_fetch_add(volatile char*, char, int);
int __tsan_atomic32_load(const volatile int*, int);
long __tsan_atomic64_load(const volatile long*, int);
short __tsan_atomic16_load(const volatile short*, int);
char __tsan_atomic8_load(const volatile char*, int);

// The compiler reports volatile accesses apart, to functions that the library does not have: relaxed
// atomic ones stand in for them.
#define FG_VOLATILE(bytes, bits, type)                                                            \
    void __tsan_volatile_read##bytes(void* p) { __tsan_atomic##bits##_load((type*)p, 0); }         \
    void __tsan_volatile_write##bytes(void* p) { __tsan_atomic##bits##_fetch_add((type*)p, 0, 0); }
FG_VOLATILE(1, 8, char)
FG_VOLATILE(2, 16, short)
FG_VOLATILE(4, 32, int)
FG_VOLATILE(8, 64, long)
#undef FG_VOLATILE
}
#endif

namespace fg {

#ifdef FG_RACES

const unsigned WITHOUT_ORDER = 1;  // a switch that orders nothing
inline void become(void* thread) { __tsan_switch_to_fiber(thread, WITHOUT_ORDER); }

// Where threads of a block meet, time and again. Two places take turns: the first to go on may
// arrive at the next meeting before the last has left this one.
struct Meeting {
    u64 place[2];
    unsigned completed = 0;
};

// Of one block. What lies here is new memory for each: the sanitizer forgets what was there before.
// All of it comes from the scheduler, as it would be a race if each thread took some.
struct Meetings {
    std::map<std::pair<int, unsigned>, Meeting> all;  // by warp (-1: the block) and mask

    u64* arrive(int warp, unsigned mask, void* self, void* scheduler) {
        become(scheduler);
        Meeting& meeting = all[{warp, mask}];
        become(self);
        u64* place = &meeting.place[meeting.completed & 1];
        __tsan_release(place);
        return place;
    }
    void leave(u64* place) { __tsan_acquire(place); }
    void complete(int warp, unsigned mask) { ++all[{warp, mask}].completed; }
};

struct Thread {
    void* self = nullptr;
    u64* places = nullptr;  // what its last fence published, and what its next one will learn

    void begin() {
        self = __tsan_create_fiber(0);
        places = new u64[2];
    }
    void end() {
        if (self) __tsan_destroy_fiber(self);
        delete[] places;
        self = nullptr;
        places = nullptr;
    }
    void fence() {
        __tsan_acquire(places + 1);
        __tsan_release(places);
    }
    // A thread that nobody knows carries both ways: what was published goes to the place of the
    // atomic operation, and what came there before waits for the next fence.
    void atomic(void* place, void* scheduler) {
        become(scheduler);
        void* carrier = __tsan_create_fiber(0);
        become(carrier);
        __tsan_acquire(place);
        __tsan_release(places + 1);
        __tsan_acquire(places);
        __tsan_release(place);
        become(self);
        __tsan_destroy_fiber(carrier);
    }
};

// Memory that a new block gets: whoever had it before does not matter.
inline void forget(void* place, unsigned long size) {
    if (size) __tsan_java_alloc(reinterpret_cast<unsigned long>(place), size);
}

inline void* this_thread() { return __tsan_get_current_fiber(); }
inline void done(void* place) { __tsan_release(place); }
inline void all_done(void* place) { __tsan_acquire(place); }

#else

struct Meetings {
    u64* arrive(int, unsigned, void*, void*) { return nullptr; }
    void leave(u64*) {}
    void complete(int, unsigned) {}
};
struct Thread {
    void* self = nullptr;
    void begin() {}
    void end() {}
    void fence() {}
    void atomic(void*, void*) {}
};
inline void become(void*) {}
inline void forget(void*, unsigned long) {}
inline void* this_thread() { return nullptr; }
inline void done(void*) {}
inline void all_done(void*) {}

#endif

}  // namespace fg
