package image

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample is an image of made-up files.
func sample(t *testing.T, tools bool) Image {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode fs.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	im := Image{Name: "client", Box: write("box", "the one file", 0o755), Applets: []string{"stap", "stapio", "staprun"}}
	if !tools {
		return im
	}
	for name, text := range map[string]string{
		"usr/bin/x86_64-linux-gnu-gcc-12": "gcc", "usr/bin/make": "make", "bin/busybox": "busybox", "usr/bin/x86_64-linux-gnu-ld.bfd": "ld",
		"lib/x86_64-linux-gnu/libc.so.6": "libc", "usr/lib/x86_64-linux-gnu/libelf-0.188.so": "libelf",
		"usr/share/doc/make/copyright": "GPL", "usr/share/doc/make/changelog.gz": "long",
		"usr/lib/gcc/x86_64-linux-gnu/12/cc1": "cc1", "usr/lib/gcc/x86_64-linux-gnu/12/lto1": "lto1", "usr/bin/perl": "perl", "etc/shadow": "secret",
	} {
		write("tools/"+name, text, 0o755)
	}
	if err := os.Symlink("gcc-12", filepath.Join(dir, "tools/usr/bin/gcc")); err != nil {
		t.Fatal(err)
	}
	im.Name, im.Toolchain = "server", filepath.Join(dir, "tools")
	return im
}

// list is what is below a directory: paths, kinds, contents.
func list(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, file)
		if target, err := os.Readlink(file); err == nil {
			all[name] = "-> " + target
			return nil
		}
		b, err := os.ReadFile(file)
		all[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func make2(t *testing.T, im Image) (string, []byte) {
	t.Helper()
	var all [2][]byte
	file := ""
	for i := range all {
		file = filepath.Join(t.TempDir(), "image.tar")
		if err := im.Write(file); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[i] = b
		// Times of files are not part of it.
		if err := os.Chtimes(im.Box, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(all[0], all[1]) {
		t.Error("the same input gives other bytes")
	}
	return file, all[0]
}

func TestClient(t *testing.T) {
	file, _ := make2(t, sample(t, false))
	dir := t.TempDir()
	p, err := Extract(file, dir)
	if err != nil {
		t.Fatal(err)
	}
	if p.User != "65532:65532" || !slices.Equal(p.Entrypoint, []string{"/usr/bin/stapbox"}) || len(p.ExposedPorts) != 0 || p.Labels["org.opencontainers.image.title"] != "stapbox client" {
		t.Errorf("%+v", p)
	}
	got := list(t, dir)
	for name, want := range map[string]string{
		"usr/libexec/stapbox/stapbox": "the one file", "usr/libexec/stapbox/stapio": "-> stapbox",
		"usr/bin/stapbox": "-> ../libexec/stapbox/stapbox", "usr/bin/stap": "-> ../libexec/stapbox/stapbox", "usr/bin/staprun": "-> ../libexec/stapbox/stapbox",
		"bin": "-> usr/bin", "lib": "-> usr/lib", "lib64": "-> usr/lib64", "sbin": "-> usr/sbin",
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nstap-server:x:65532:65532:compile server:/var/lib/stap-server:/bin/sh\n",
		"etc/group":  "root:x:0:\nstapusr:x:156:\nstapsys:x:157:\nstapdev:x:158:\nstap-server:x:65532:\n",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
		delete(got, name)
	}
	if len(got) != 0 {
		t.Errorf("it has more: %q", got)
	}
	for name, want := range map[string]fs.FileMode{"tmp": fs.ModeDir | fs.ModeSticky | 0o777, "var/lib/stap-server": fs.ModeDir | 0o700, "etc/systemtap/staprun": fs.ModeDir | 0o755} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

func TestServer(t *testing.T) {
	file, _ := make2(t, sample(t, true))
	dir := t.TempDir()
	p, err := Extract(file, dir)
	if err != nil {
		t.Fatal(err)
	}
	want := Process{
		User: "65532:65532", ExposedPorts: map[string]struct{}{"4321/tcp": {}}, Volumes: map[string]struct{}{Home: {}}, StopSignal: "SIGTERM",
		Entrypoint: []string{"/usr/bin/stapbox", "entrypoint"}, Cmd: []string{"--port=4321"}, WorkingDir: "/",
		Env: []string{"PATH=/usr/bin:/usr/sbin", "HOME=" + Home, "SYSTEMTAP_DIR=" + Home}, Labels: p.Labels,
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("%+v\nwant\n%+v", p, want)
	}
	got := list(t, dir)
	for name, want := range map[string]string{
		"usr/bin/stap": "-> ../libexec/stapbox/stapbox", "usr/bin/x86_64-linux-gnu-gcc-12": "gcc", "usr/bin/gcc": "-> gcc-12", "usr/bin/busybox": "busybox",
		"usr/bin/sh": "-> busybox", "usr/bin/[": "-> busybox", "usr/lib/x86_64-linux-gnu/libc.so.6": "libc", "usr/share/doc/make/copyright": "GPL",
		"usr/lib/gcc/x86_64-linux-gnu/12/cc1": "cc1", "usr/lib/gcc/x86_64-linux-gnu/12/lto1": "", "usr/bin/perl": "", "etc/shadow": "", "usr/share/doc/make/changelog.gz": "",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
}

// What is not as its digest says is refused.
func TestExtractRefuses(t *testing.T) {
	_, good := make2(t, sample(t, false))
	for what, change := range map[string][2]string{
		"oci-layout is":    {`{"imageLayoutVersion":"1.0.0"}`, `{"imageLayoutVersion":"2.0.0"}`},
		"is missing":       {`manifest.v1+json","digest":"sha256:`, `manifest.v1+json","digest":"sha257:`},
		"index.json is of": {`image.index.v1+json`, `image.index.v2+json`},
		`not "application/vnd.oci.image.manifest`: {`"manifests":[{"mediaType":"application/vnd.oci.image.m`, `"manifests":[{"mediaType":"application/vnd.oci.image.n`},
		"has not the size or the digest":          {`"User":"65532`, `"User":"65533`},
	} {
		file := filepath.Join(t.TempDir(), "image.tar")
		bad := bytes.Replace(good, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(bad, good) {
			t.Fatalf("no %q", change[0])
		}
		if err := os.WriteFile(file, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Extract(file, t.TempDir()); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestLayerRefuses(t *testing.T) {
	l := layer{}
	l.text("a", "1")
	l.text("a", "2")
	if _, err := l.write(&bytes.Buffer{}); err == nil || fmt.Sprint(err) != `"a" is in a layer twice` {
		t.Errorf("%v", err)
	}
	if err := (Image{Name: "client", Box: "/proc/nonexistent"}).Write(filepath.Join(t.TempDir(), "x")); err == nil {
		t.Error("an image without the one file")
	}
}
