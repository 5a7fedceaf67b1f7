package stapsh

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/hostpaths"
	"stapbox/core/invocation"
)

// TestMain lets the test binary be stapsh: the tests run it as a process.
func TestMain(m *testing.M) {
	if dir := os.Getenv("STAPSH_TEST_BINDIR"); dir != "" {
		hostpaths.Bindir = dir
		os.Exit(Main(context.Background(), invocation.FromProcess("stapsh", os.Args[1:], os.Environ(), nil)))
	}
	os.Exit(m.Run())
}

// process prepares stapsh with a staprun that is this shell script.
func process(t *testing.T, script string, args ...string) (cmd *exec.Cmd, tmp string) {
	t.Helper()
	bin, tmp := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "staprun"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "STAPSH_TEST_BINDIR="+bin, "TMPDIR="+tmp)
	t.Cleanup(func() {
		if left, _ := os.ReadDir(tmp); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return cmd, tmp
}

func status(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// Whole sessions whose input comes at once: nothing may stall or get lost.
func TestSessions(t *testing.T) {
	hello := fmt.Sprintf("stapsh 5.6 %s %s\n", machine(), hostpaths.KernelRelease())
	for _, tt := range []struct {
		name, script, in string
		status           int
		out              string
	}{
		{name: "nothing"},
		{name: "greeting", in: "stap 5.6\n", out: hello},
		{name: "blank and unknown commands", in: "\n \t\r\nfoo bar\nstap\n", out: hello},
		{name: "a last line without its end", in: "stap 4.8", out: hello},
		{name: "quit", in: "quit\nstap 5\n"},
		{name: "options", in: "option verbose\noption bpf\noption dyninst\noption\noption a b\n",
			out: "OK\nERROR: Invalid option\nERROR: Invalid option\nERROR: Could not parse option\nERROR: Could not parse option\n"},
		{name: "files", script: `cat m.ko; ls; stat -c %a . m.ko; pwd | grep -c stapsh`, in: "file 7 m.ko\nmod\nule" + "file 1 b_1\nx" + "run m.ko\n",
			out: "OK\nOK\nOK\nmod\nuleb_1\nm.ko\n700\n600\n1\n"},
		{name: "sizes of files", in: "file 0 a\nfile 32000001 a\nfile x a\nfile -1 a\nfile\n",
			out: "ERROR: Bad file size 0\nERROR: Bad file size 32000001\nERROR: Bad file size 0\nERROR: Bad file size -1\nERROR: Bad file size 0\n"},
		{name: "names of files", in: "file 1\nxfile 1 /etc/x\nyfile 1 ../x\nzfile 1 a/b\n1file 1 .a\n2file 1 a\x01\n3stap\n",
			out: "ERROR: Missing file name\nERROR: Bad character '/' in file name\nERROR: Bad character '.' in file name\nERROR: Bad character '/' in file name\nERROR: Bad character '.' in file name\nERROR: Bad character '\\x01' in file name\n" + hello},
		{name: "input ends in a file", in: "file 10 a\nabc", status: 2},
		{name: "arguments", script: `for a; do echo "[$a]"; done`, in: "run -v a=20b =3D =c3=a4 ;x $HOME\n", out: "OK\n[-v]\n[a b]\n[=]\n[ä]\n[;x]\n[$HOME]\n"},
		{name: "bad arguments", in: "run\nrun a=\nrun =4\nrun =zz\nrun a=00b\nrun" + strings.Repeat(" a", 256) + "\n",
			out: "ERROR: Missing arguments\n" + strings.Repeat("ERROR: Bad quoted-printable encoding\n", 4) + "ERROR: Too many arguments\n"},
		{name: "status", script: "exit 7", in: "run m\n", status: 7, out: "OK\n"},
		{name: "killed", script: "kill -9 $$", in: "run m\n", status: 137, out: "OK\n"},
		{name: "framed", script: "echo out; sleep 0.1; echo err >&2; exit 3", in: "option data\nrun m\n", status: 3, out: "OK\nOK\ndata stdout 4\nout\ndata stderr 4\nerr\nquit\n"},
		{name: "standard input is empty", script: "cat; echo end", in: "option data\nrun m\n", out: "OK\nOK\ndata stdout 4\nend\nquit\n"},
		{name: "too long a line", in: "stap " + strings.Repeat("x", 5000) + "\nstap\n", status: 2, out: "ERROR: Line longer than 4095 bytes\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd, _ := process(t, tt.script)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			io.WriteString(in, tt.in)
			if tt.script == "" { // else the end of staprun is the end
				in.Close()
			}
			if got := status(cmd.Wait()); stdout.String() != tt.out || got != tt.status {
				t.Errorf("status %d, %q, stderr %q; want %d, %q", got, stdout.String(), stderr.String(), tt.status, tt.out)
			}
		})
	}
}

// talk is stapsh with its input open.
func talk(t *testing.T, script string, args ...string) (cmd *exec.Cmd, in io.WriteCloser, out *bufio.Reader) {
	t.Helper()
	cmd, _ = process(t, script, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	return cmd, in, bufio.NewReader(r)
}

// Upstream ends as soon as staprun has, with its last output still in the pipe.
func TestLastOutputArrives(t *testing.T) {
	for range 5 {
		cmd, in, out := talk(t, `i=0; while [ $i -lt 3000 ]; do echo "line $i of the output"; i=$((i+1)); done; echo end >&2`)
		io.WriteString(in, "option data\nrun m\n")
		all, err := io.ReadAll(out)
		if err != nil {
			t.Fatal(err)
		}
		text := string(all)
		if !strings.Contains(text, "line 2999 of the output\n") || !strings.HasSuffix(text, "quit\n") || !strings.Contains(text, "data stderr 4\nend\n") {
			t.Fatalf("%d bytes, ending in %q", len(text), text[max(len(text)-100, 0):])
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// A process that staprun left behind does not hold the session.
func TestLeftoverProcess(t *testing.T) {
	cmd, in, out := talk(t, `sleep 20 & echo here`)
	before := time.Now()
	io.WriteString(in, "option data\nrun m\n")
	all, _ := io.ReadAll(out)
	if want := "OK\nOK\ndata stdout 5\nhere\nquit\n"; string(all) != want {
		t.Errorf("got %q, want %q", all, want)
	}
	if d := time.Since(before); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	cmd.Wait()
}

// The end of input, quit and signals hang staprun up; its last words arrive.
func TestHangUp(t *testing.T) {
	const script = `trap 'echo bye; exit 5' HUP; echo up; while :; do sleep 0.05; done`
	for name, end := range map[string]func(cmd *exec.Cmd, in io.WriteCloser){
		"end of input": func(_ *exec.Cmd, in io.WriteCloser) { in.Close() },
		"quit":         func(_ *exec.Cmd, in io.WriteCloser) { io.WriteString(in, "quit\n") },
		"SIGTERM":      func(cmd *exec.Cmd, _ io.WriteCloser) { cmd.Process.Signal(syscall.SIGTERM) },
		"SIGHUP":       func(cmd *exec.Cmd, _ io.WriteCloser) { cmd.Process.Signal(syscall.SIGHUP) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, in, out := talk(t, script)
			io.WriteString(in, "option data\nrun m\n")
			for line := ""; line != "up\n"; {
				var err error
				if line, err = out.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			io.WriteString(in, "run again\n")
			if line, _ := out.ReadString('\n'); line != "ERROR: staprun is running\n" {
				t.Errorf("second run: %q", line)
			}
			end(cmd, in)
			all, _ := io.ReadAll(out)
			if want := "data stdout 4\nbye\nquit\n"; string(all) != want {
				t.Errorf("got %q, want %q", all, want)
			}
			if s := status(cmd.Wait()); s != 5 {
				t.Errorf("status %d, want 5", s)
			}
		})
	}
}

// When nobody reads any more staprun can still end.
func TestReaderGone(t *testing.T) {
	cmd, _ := process(t, `trap 'exit 4' HUP; while :; do echo line; done`)
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = pw
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	pw.Close()
	io.WriteString(in, "option data\nrun m\n")
	io.ReadFull(pr, make([]byte, 100))
	pr.Close()
	in.Close()
	if s := status(cmd.Wait()); s != 4 {
		t.Errorf("status %d, want 4", s)
	}
}

func TestNoStaprun(t *testing.T) {
	cmd, in, out := talk(t, "")
	os.Remove(filepath.Join(environ(cmd, "STAPSH_TEST_BINDIR"), "staprun"))
	io.WriteString(in, "run m\n")
	if line, _ := out.ReadString('\n'); !strings.HasPrefix(line, "ERROR: ") || !strings.Contains(line, "no such file") {
		t.Errorf("got %q", line)
	}
	in.Close()
	if s := status(cmd.Wait()); s != 0 {
		t.Errorf("status %d", s)
	}
}

func environ(cmd *exec.Cmd, name string) string {
	for _, e := range cmd.Env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// A port is a character device; a terminal is one whose other end tests have.
func TestPort(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	defer master.Close()
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	slave, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	termios, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	termios.Lflag, termios.Oflag, termios.Iflag = 0, 0, 0
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, termios); err != nil {
		t.Fatal(err)
	}
	cmd, _ := process(t, "echo over the port", "-l", name)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	io.WriteString(master, "option data\nrun m\n")
	var got []byte
	want := "OK\nOK\ndata stdout 14\nover the port\nquit\n"
	for buf := make([]byte, 256); len(got) < len(want); {
		n, err := master.Read(buf)
		if err != nil {
			break
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if s := status(cmd.Wait()); s != 0 {
		t.Errorf("status %d", s)
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-x"}, "stapsh: invalid option -- 'x'"},
		{[]string{"word"}, `stapsh: unknown argument "word"`},
		{[]string{"-l", ""}, "stapsh: option '-l' has an empty name"},
		{[]string{"-l", "../x"}, `stapsh: port "../x" is neither a name nor an absolute path`},
		{[]string{"-l", "org.systemtap.stapsh.none"}, "no such file or directory"},
	} {
		cmd, _ := process(t, "", tt.args...)
		out, err := cmd.CombinedOutput()
		if status(err) < 1 || !strings.Contains(string(out), tt.want) {
			t.Errorf("%q: status %d, %q; want %q", tt.args, status(err), out, tt.want)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("file 12 name.ko\r\n"))
	f.Add([]byte(" \t a\tb \n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		words := split(line)
		if got, want := strings.Join(words, " "), strings.Join(strings.FieldsFunc(string(line), func(r rune) bool { return strings.ContainsRune(" \t\r\n", r) }), " "); got != want && bytes.Equal([]byte(string([]rune(string(line)))), line) {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
		for _, w := range words {
			if w == "" || strings.ContainsAny(w, " \t\r\n") {
				t.Errorf("%q has the word %q", line, w)
			}
			if _, ok := checkName(w); ok && filepath.Base(w) != w {
				t.Errorf("%q is accepted as a file name", w)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add("a=20b=3D")
	f.Add("=")
	f.Add("=0")
	f.Add("==41")
	f.Fuzz(func(t *testing.T, word string) {
		got, err := decode(word)
		if err != nil {
			return
		}
		if strings.Contains(word, "\x00") { // no line of a real client has it
			return
		}
		if strings.Contains(got, "\x00") || len(got) > len(word) {
			t.Errorf("%q gives %q", word, got)
		}
		var coded strings.Builder
		for i := 0; i < len(got); i++ {
			fmt.Fprintf(&coded, "=%02X", got[i])
		}
		if back, err := decode(coded.String()); back != got || err != nil {
			t.Errorf("%q: got %q, %v back from %q", word, back, err, coded.String())
		}
	})
}
