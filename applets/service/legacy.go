package service

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stapbox/core/getopt"
	"stapbox/core/invocation"
	"stapbox/core/service"
	"stapbox/core/version"
)

// findTime is how long looking for a server may take.
const findTime = 30 * time.Second

// Legacy runs the tools of SystemTap 0.9 (services 4): nothing on standard output
// but what each is asked for.
func Legacy(ctx context.Context, inv *invocation.Invocation) int {
	t := &legacy{inv: inv, euid: os.Geteuid(), places: systemPlaces()}
	t.find = t.findServers
	if slices.Contains(inv.Args, "--version") {
		fmt.Fprintf(inv.Stdout, "%s (stapbox %s, protocol version %s)\n", inv.Name, version.Version, version.Protocol)
		return exitOK
	}
	if len(inv.Args) == 1 && (inv.Args[0] == "--help" || inv.Args[0] == "-h") {
		fmt.Fprintln(inv.Stdout, map[string]string{
			"stap-start-server":         "Usage: stap-start-server [stap-serverd options]\nStart a compile server and print its process id.",
			"stap-find-or-start-server": "Usage: stap-find-or-start-server [stap-serverd options]\nPrint 0 if there is a compatible compile server, else start one and print its\nprocess id, else print -1.",
			"stap-stop-server":          "Usage: stap-stop-server [--wait] PROCESS_ID\nEnd a compile server; with --wait, wait until it has ended.",
		}[inv.Name])
		return exitOK
	}
	switch inv.Name {
	case "stap-stop-server":
		return t.stop()
	case "stap-find-or-start-server":
		return t.findOrStart(ctx)
	default:
		return t.start(ctx)
	}
}

type legacy struct {
	inv  *invocation.Invocation
	euid int
	places
	find func(context.Context) bool
}

// start is stap-start-server: the words are those of stap-serverd, or a port and
// a directory of key and certificate, as in 0.9.
func (t *legacy) start(ctx context.Context) int {
	server, err := t.launch(ctx)
	if err != nil {
		fmt.Fprintf(t.inv.Stderr, "Unable to start a systemtap server: %s did not start: %v\n", serverPath(t.executable), err)
		return exitFailure
	}
	fmt.Fprintln(t.inv.Stdout, server.pid)
	return exitOK
}

func (t *legacy) launch(ctx context.Context) (*launched, error) {
	if t.euid == 0 {
		return nil, fmt.Errorf("For security reasons, invocation of %s as root is not supported.", t.inv.Name)
	}
	args := positional(t.inv.Args)
	m := &manager{inv: t.inv, euid: t.euid, places: t.places}
	l := launcher{executable: t.executable, args: args, environ: environ(t.inv.Environ, nil), limit: readyTime}
	dir := t.inv.Getenv("SYSTEMTAP_DIR")
	if dir != "" && !filepath.IsAbs(dir) {
		dir = filepath.Join(t.inv.Dir, dir)
		l.environ = append(l.environ, "SYSTEMTAP_DIR="+dir)
	}
	if needsKey(sslOf(args), dir, m.self()) {
		l.limit = keyTime
	}
	return l.run(ctx)
}

// positional makes options of the words [PORT [SSLDIR]].
func positional(args []string) []string {
	if len(args) == 0 || args[0] == "" || strings.Trim(args[0], "0123456789") != "" {
		return args
	}
	list := []string{"--port=" + args[0]}
	args = args[1:]
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		list, args = append(list, "--ssl="+args[0]), args[1:]
	}
	return append(list, args...)
}

// sslOf is the value of --ssl among options of stap-serverd; which others there
// are does not matter.
func sslOf(args []string) string {
	value := ""
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--ssl="); ok {
			value = v
		} else if a == "--ssl" && i+1 < len(args) {
			value = args[i+1]
		}
	}
	return value
}

// findOrStart is stap-find-or-start-server.
func (t *legacy) findOrStart(ctx context.Context) int {
	if t.find(ctx) {
		fmt.Fprintln(t.inv.Stdout, 0)
		return exitOK
	}
	server, err := t.launch(ctx)
	if err != nil {
		fmt.Fprintf(t.inv.Stderr, "Unable to start a systemtap server: %v\n", err)
		fmt.Fprintln(t.inv.Stdout, -1)
		return exitFailure
	}
	fmt.Fprintln(t.inv.Stdout, server.pid)
	return exitOK
}

// findServers asks stap-find-servers, which is this program by another name.
func (t *legacy) findServers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, findTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.executable)
	cmd.Args, cmd.Env, cmd.Stdout, cmd.Stderr = []string{"stap-find-servers"}, t.inv.Environ, io.Discard, io.Discard
	return cmd.Run() == nil
}

// stop is stap-stop-server.
func (t *legacy) stop() int {
	opts, words, err := getopt.Parse(getopt.Spec{Defs: []getopt.Def{{Long: "wait"}}}, t.inv.Args)
	if err != nil || len(words) == 0 {
		fmt.Fprintf(t.inv.Stderr, "Usage: %s PROCESS_ID\n", t.inv.Name)
		return exitFailure
	}
	pid, ok := service.ParsePID(words[0])
	var h *service.Handle
	if ok {
		h, err = service.Hold(t.dir.Proc, pid, 0)
	}
	switch {
	case err != nil:
		fmt.Fprintf(t.inv.Stderr, "%s: %v\n", t.inv.Name, err)
		return exitFailure
	case h == nil:
		fmt.Fprintf(t.inv.Stderr, "%s is not a systemtap server\n", words[0])
		return exitFailure
	}
	defer h.Close()
	if err := h.Signal(unix.SIGTERM); err != nil {
		fmt.Fprintf(t.inv.Stderr, "%s: Stopping process %s: %v\n", t.inv.Name, strconv.Itoa(pid), err)
		return exitFailure
	}
	if len(opts) > 0 && !h.Wait(stopTime) {
		fmt.Fprintf(t.inv.Stderr, "%d not shutting down\n", pid)
		return exitFailure
	}
	return exitOK
}
