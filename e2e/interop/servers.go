package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"stapbox/e2e/lab"
)

// exchange is a module that a server made for a client of the other side.
type exchange struct {
	name, file string
}

// servers has each client get a module from the other side's server, inside the
// tree and in a network of its own.
func (r *run) servers(ctx context.Context, image *lab.Image) []exchange {
	net, err := r.lab.NewNetwork()
	if err != nil {
		r.result("clients and servers of both sides", failed, err.Error())
		return nil
	}
	defer net.Close()
	var out []exchange
	for _, x := range []struct {
		name           string
		server, client string // paths inside the tree; "" is upstream's
	}{
		{"upstream's client, our server", "/mnt/bin/stap-serverd", "stap"},
		{"our client, upstream's server", "", "/mnt/bin/stap"},
	} {
		module, err := r.viaServer(ctx, net, x.server, x.client)
		if err != nil {
			r.result(x.name+": -p4", failed, err.Error())
			continue
		}
		r.result(x.name+": -p4", ok, "")
		file := fmt.Sprintf("modules/exchanged%d/%s.ko", len(out), helloScript.Module())
		image.File(file, 0o644, module)
		out = append(out, exchange{x.name + ": the module", "/" + file})
	}
	return out
}

// runExchanged runs those modules under both pairs.
func (r *run) runExchanged(list []exchange) {
	for _, x := range list {
		r.hello(x.name+" under our staprun", OurPair, x.file)
		r.hello(x.name+" under upstream's staprun", r.theirs, x.file)
	}
}

// viaServer starts a server as an unprivileged user, has a client of root trust
// it and ask it for hello.
func (r *run) viaServer(ctx context.Context, net *lab.Network, server, client string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, serverTime)
	defer cancel()
	work, err := os.MkdirTemp(r.peer.Dir, "exchange-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	for dir, uid := range map[string]int{".": 0, "bin": 0, "server": lab.ServerUID, "server/tmp": lab.ServerUID, "client": 0} {
		if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
			return nil, err
		}
		if err := errors.Join(os.Chmod(filepath.Join(work, dir), 0o755), os.Chown(filepath.Join(work, dir), uid, uid)); err != nil {
			return nil, err
		}
	}
	if err := os.CopyFS(filepath.Join(work, "bin"), os.DirFS(filepath.Join(r.work, "bin"))); err != nil {
		return nil, err
	}
	if server == "" {
		if server, err = r.peer.Find("stap-serverd"); err != nil {
			return nil, err
		}
	}
	d := &daemon{ended: make(chan struct{})}
	life, stop := context.WithCancel(ctx)
	cmd := r.peer.Command(life, lab.Inside{
		Net: net, UID: lab.ServerUID, Work: work,
		Env: []string{"HOME=/mnt/server", "TMPDIR=/mnt/server/tmp", "USER=nobody", "SYSTEMTAP_DIR=/mnt/server/.systemtap"},
	}, server, "-r", r.peer.Kernel.Release)
	cmd.Stdout, cmd.Stderr = d, d
	if err := cmd.Start(); err != nil {
		stop()
		return nil, err
	}
	go func() {
		cmd.Wait()
		close(d.ended)
	}()
	defer func() {
		stop()
		<-d.ended
	}()
	port, err := d.port(ctx)
	if err != nil {
		return nil, err
	}
	address := "127.0.0.1:" + port
	in := lab.Inside{Net: net, Work: work, Env: []string{"HOME=/mnt/client", "SYSTEMTAP_DIR=/mnt/client/.systemtap"}}
	ask := func(args ...string) (string, error) {
		cmd := r.peer.Command(ctx, in, args...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w\n%sserver:\n%s", strings.Join(args, " "), err, out, d.text())
		}
		return string(out), err
	}
	trusted, err := ask(client, "--trust-servers=ssl,no-prompt", "--use-server="+address)
	if err != nil {
		return nil, err
	}
	out, err := ask(client, "-p4", "-r", r.peer.Kernel.Release, "-m", helloScript.Module(), "--use-server="+address, "-e", string(helloScript.Text))
	if err != nil {
		return nil, fmt.Errorf("%w\nafter %s", err, trusted)
	}
	m, err := os.ReadFile(filepath.Join(work, helloScript.Module()+".ko"))
	if err != nil {
		return nil, fmt.Errorf("%w\nthe client said:\n%sthe server said:\n%s", err, out, d.text())
	}
	return m, nil
}

// daemon collects what a server logs.
type daemon struct {
	mu    sync.Mutex
	log   bytes.Buffer
	ended chan struct{}
}

func (d *daemon) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(b)
}

func (d *daemon) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

var (
	listening = regexp.MustCompile(`Using network address \[?[^\]]*\]?:(\d+)`)
	// Upstream's server first makes its certificate.
	generating = regexp.MustCompile(`Generating a new certificate`)
)

// port waits until the server listens and has a certificate.
func (d *daemon) port(ctx context.Context) (string, error) {
	for {
		text := d.text()
		if m := listening.FindStringSubmatch(text); m != nil {
			if generating.MatchString(text) {
				time.Sleep(3 * time.Second)
			}
			return m[1], nil
		}
		select {
		case <-d.ended:
			return "", fmt.Errorf("the server ended:\n%s", d.text())
		case <-ctx.Done():
			return "", fmt.Errorf("the server does not listen: %w\n%s", ctx.Err(), d.text())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
