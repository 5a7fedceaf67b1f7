/* SPDX-License-Identifier: MIT OR GPL-2.0 */
static inline u32 jhash(const void *p, size_t n, u32 h)
{
	const unsigned char *s = p;

	while (n--)
		h = (h ^ *s++) * 16777619u;
	return h;
}
static inline u32 jhash_2words(u32 a, u32 b, u32 h) { u32 w[2] = { a, b }; return jhash(w, sizeof(w), h); }
