package image

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// Packages are those of Debian 12 that building modules needs: the kernel's own
// build system once for each kernel (make, a shell and its small programs), then
// compiler, assembler, linker and objtool, and the libraries of these.
func Packages() []string {
	return []string{
		"binutils", "binutils-common", "binutils-x86-64-linux-gnu", "busybox-static", "cpp-12", "gcc-12", "gcc",
		"libbinutils", "libc6", "libctf-nobfd0", "libctf0", "libelf1", "libgcc-s1", "libgmp10", "libisl23", "libjansson4",
		"libmpc3", "libmpfr6", "libstdc++6", "libzstd1", "make", "zlib1g",
	}
}

// wanted are the files of the packages that go into the image, in a merged /usr.
var wanted = regexp.MustCompile(`^usr/(` + strings.Join([]string{
	`bin/(x86_64-linux-gnu-)?(gcc|cpp)(-12)?`,
	`bin/(x86_64-linux-gnu-)?(ar|as|ld|ld\.bfd|nm|objcopy|objdump|ranlib|readelf|strip|size|strings)`,
	`bin/(make|busybox)`,
	`lib/gcc/x86_64-linux-gnu/12/(cc1|collect2|liblto_plugin\.so|include/.*)`,
	`lib/x86_64-linux-gnu/(lib(bfd|opcodes|sframe|ctf|ctf-nobfd|elf|gmp|isl|jansson|mpc|mpfr|zstd|z|gcc_s|stdc\+\+|c|m|dl|pthread|rt|util)[-.].*so.*|ld-linux-x86-64\.so\.2)`,
	`lib64/ld-linux-x86-64\.so\.2`,
	`lib/x86_64-linux-gnu/bfd-plugins/.*`,
	`share/doc/.*/copyright`,
}, "|") + `)$`)

// small are the programs that the kernel's build system calls from its shell;
// busybox is all of them.
func small() []string {
	return strings.Fields("[ awk basename bc cat chmod cmp cp cut date diff dirname echo env expr false find grep head hostname id install ln ls mkdir mktemp mv nproc " +
		"od printf pwd readlink realpath rm rmdir sed seq sh sleep sort stat tail tar tee test touch tr true uname uniq wc which xargs")
}

// toolchain is the layer with them. Nothing of the packages is run.
func toolchain(root string) (layer, error) {
	var l layer
	if err := l.tree(root, wanted.MatchString); err != nil {
		return nil, err
	}
	// With no such directory at all the compiler's trials of options fail.
	l.dir("usr/include", 0o755, 0)
	has := func(name string) bool {
		return slices.ContainsFunc(l, func(e entry) bool { return e.name == name })
	}
	for _, name := range small() {
		if at := path.Join("usr/bin", name); !has(at) {
			l.symlink(at, "busybox")
		}
	}
	return l, nil
}
