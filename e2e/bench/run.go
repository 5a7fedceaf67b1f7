package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"stapbox/e2e/lab"
)

// size is that of the executable.
func (b *bench) size(context.Context) error {
	st, err := os.Stat(b.programs.Box)
	if err != nil {
		return err
	}
	b.add(&row{what: "size of the executable", unit: megabytes, ours: []float64{float64(st.Size())}, most: 16e6})
	return nil
}

const helloScript = `probe begin { printf ("Hello\n"); exit (); }`

// ourModule and theirModule are made by modules and run by guest.
func (b *bench) ourModule() string   { return filepath.Join(b.work, "our.ko") }
func (b *bench) theirModule() string { return filepath.Join(b.work, "their.ko") }

// modules measures hello.ko for every kernel. The compiler for the matrix is
// this machine's, for the peer's kernel that of the tree.
func (b *bench) modules(ctx context.Context) error {
	theirs, ours, err := b.sides()
	if err != nil {
		return err
	}
	for _, v := range lab.Versions() {
		k, err := b.lab.FetchKernel(v)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, b.programs.Applet("stap"), "-p4", "-r", k.Headers, "-m", "hello", "-e", helloScript)
		cmd.Dir = b.work
		cmd.Env = append(os.Environ(), "SYSTEMTAP_DIR="+filepath.Join(b.work, "matrix"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building hello.ko for kernel %s: %w\n%s", v, err, out)
		}
		n, err := stripped(filepath.Join(b.work, "hello.ko"))
		if err != nil {
			return err
		}
		b.add(&row{what: "hello.ko for kernel " + v + ", stripped", unit: bytes, ours: []float64{n}, most: 64 << 10})
	}
	r := &row{what: "hello.ko for kernel " + b.peer.Kernel.Release + ", stripped", unit: bytes, most: 64 << 10}
	for _, x := range []struct {
		side
		name string
		to   *[]float64
	}{{theirs, b.theirModule(), &r.theirs}, {ours, b.ourModule(), &r.ours}} {
		module := strings.TrimSuffix(filepath.Base(x.name), ".ko")
		if _, err := b.time(ctx, x.side, b.p4(x.side, "-m", module, "-e", helloScript)...); err != nil {
			return err
		}
		n, err := stripped(x.name)
		if err != nil {
			return err
		}
		*x.to = []float64{n}
	}
	b.add(r)
	return nil
}

// stripped is the size of a module without debug information.
func stripped(module string) (float64, error) {
	to := module + ".stripped"
	defer os.Remove(to)
	if out, err := exec.Command("strip", "--strip-debug", "-o", to, module).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("stripping %q: %w\n%s", module, err, out)
	}
	st, err := os.Stat(to)
	if err != nil {
		return 0, err
	}
	return float64(st.Size()), nil
}

// session runs "$@" and prints the hundredths of a second it took, which is
// what the guest's clock shows a shell.
const session = `read begin rest </proc/uptime
"$@" >/tmp/out 2>&1
status=$?
read end rest </proc/uptime
grep -qx Hello /tmp/out || { cat /tmp/out; exit 1; }
[ $status = 0 ] || exit $status
echo $begin $end`

// guest measures staprun from start to exit in a guest with the peer's kernel.
func (b *bench) guest(ctx context.Context) error {
	image := lab.NewImage()
	staprun, env, err := b.peer.Runtime(ctx, image, "peer")
	if err != nil {
		return err
	}
	for _, m := range []string{b.ourModule(), b.theirModule()} {
		text, err := os.ReadFile(m)
		if err != nil {
			return err
		}
		image.File("modules/"+filepath.Base(m), 0o644, text)
	}
	g, err := b.lab.Boot(lab.GuestConfig{Kernel: b.peer.Kernel, Image: image, Agent: b.programs.Agent, Box: b.programs.Box, Memory: 2048})
	if err != nil {
		return err
	}
	defer g.Kill()
	run := func(staprun, module string, env []string) (float64, error) {
		r := lab.Command(lab.Root, "/bin/sh", "-c", session, "sh", staprun, "/modules/"+filepath.Base(module))
		r.Env = append(r.Env, env...)
		r.Timeout = 120
		a, err := g.Do(r)
		if err != nil {
			return 0, err
		}
		var begin, end float64
		if _, err := fmt.Sscan(string(a.Stdout), &begin, &end); err != nil || a.Status != 0 || a.TimedOut {
			return 0, errors.Join(err, fmt.Errorf("%s %s in the guest: status %d\n%s%s", staprun, module, a.Status, a.Stdout, a.Stderr))
		}
		return end - begin, nil
	}
	own := &row{what: "staprun hello in a guest, own module", unit: seconds, ratio: 0.25}
	other := &row{what: "staprun hello in a guest, upstream's module", unit: seconds, ratio: 0.5}
	for i := range runs + 1 {
		pair, err := run(staprun, b.theirModule(), env)
		if err != nil {
			return err
		}
		mixed, err := run("/usr/bin/staprun", b.theirModule(), nil)
		if err != nil {
			return err
		}
		mine, err := run("/usr/bin/staprun", b.ourModule(), nil)
		if err != nil {
			return err
		}
		if i == 0 {
			continue // warms up
		}
		own.theirs = append(own.theirs, pair)
		other.theirs = append(other.theirs, pair)
		other.ours = append(other.ours, mixed)
		own.ours = append(own.ours, mine)
	}
	b.add(own)
	b.add(other)
	return ctx.Err()
}
