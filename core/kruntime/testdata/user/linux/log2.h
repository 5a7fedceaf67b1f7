/* SPDX-License-Identifier: MIT OR GPL-2.0 */
static inline u32 roundup_pow_of_two(u32 n) { u32 r = 1; while (r < n) r <<= 1; return r; }
#define array_size(a, b) ((size_t)(a) * (b))
static inline int ilog2(u64 n) { return 63 - __builtin_clzll(n); }
