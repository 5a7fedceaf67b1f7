package uname

import "testing"

// Requirements: B-26
func TestArch(t *testing.T) {
	for in, want := range map[string]string{"x86_64": "x86_64", "i686": "i386", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "powerpc", "s390x": "s390", "riscv64": "riscv"} {
		if got := Arch(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
