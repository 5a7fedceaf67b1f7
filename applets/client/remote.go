package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"stapbox/core/hostpaths"
	"stapbox/core/identity"
	"stapbox/core/kbuild"
	"stapbox/core/ownfile"
	"stapbox/core/report"
	"stapbox/core/script/tapset"
	"stapbox/core/wire"
)

// remote has a server do passes 1 to 4.
func (c *client) remote(ctx context.Context) outcome {
	start := c.now()
	if c.opts.Verbose > 0 {
		c.say("Using a compile server.")
	}
	failed := func() outcome {
		c.passesFailed()
		return outcome{rc: 1, server: true}
	}
	request, err := c.request()
	if err != nil {
		c.say("%v", err)
		return failed()
	}
	archive, err := request.Encode()
	if err != nil {
		c.say("ERROR: packing the request: %v", err)
		return failed()
	}
	s := newServers(c)
	if s.own, err = identity.LoadClient(hostpaths.ClientIdentity(c.data)); err != nil {
		c.say("ERROR: %v", err)
		return failed()
	}
	answer, server, ok := c.askRemembered(ctx, s, archive)
	if !ok && ctx.Err() == nil {
		list, err := s.candidates(ctx)
		if err != nil {
			c.say("%v", err)
			return failed()
		}
		if len(list) == 0 {
			c.say("%s", s.noServer(ctx))
			return failed()
		}
		answer, server, ok = c.exchange(ctx, s, list, archive)
	}
	if !ok {
		return failed()
	}
	c.remember(s, server, s.shown)
	out, err := c.response(answer)
	if err != nil {
		c.say("%v", err)
		return failed()
	}
	if c.opts.Verbose > 0 {
		c.say("Passes: via server%s using %dkb, in %dreal ms.", server, (len(archive)+len(answer)+1023)/1024, c.now().Sub(start).Milliseconds())
	}
	if out.rc != 0 {
		c.passesFailed()
	}
	return out
}

func (c *client) passesFailed() {
	if c.opts.List == 0 {
		c.say("Passes: via server failed.  Try again with another '-v' option.")
	}
}

// exchange tries the servers in order.
func (c *client) exchange(ctx context.Context, s *servers, list []record, archive []byte) ([]byte, record, bool) {
	var last error
	for _, r := range list {
		if !r.addr.IsValid() || r.port == 0 {
			continue
		}
		if c.opts.Verbose >= 2 {
			c.say("Attempting SSL connection with %s\n  using certificates from the database in %s", r, c.userStore().dir)
		}
		cl := c.wireClient(r)
		cl.Verify, cl.Certificate = s.verify(r), s.own
		if r.remembered {
			cl.Attempts, cl.Timeouts.Connect, cl.Timeouts.Handshake = 1, rememberedConnect, rememberedHandshake
		}
		line := c.progress(clean(r.name()))
		answer, err := cl.Exchange(ctx, archive)
		line.end()
		if err == nil {
			return answer, r, true
		}
		last = err
		if c.opts.Verbose >= 2 {
			c.say("  Unable to connect: %v", err)
			if a := r.addr; a.Is6() && a.IsLinkLocalUnicast() && a.Zone() == "" {
				c.say("    The address is an IPv6 link-local address with no scope specifier.")
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(list) > 0 && list[0].remembered {
		return nil, record{}, false // others may be found
	}
	c.say("Unable to connect to a server.")
	if last != nil && c.opts.Verbose < 2 {
		c.say("%v", last)
	}
	if errors.Is(last, errUntrusted) {
		c.say("hint: stap --trust-servers --use-server=%s, after comparing the fingerprint with the one in the server's log", list[0].address())
	}
	if c.opts.Verbose == 1 {
		fmt.Fprint(c.inv.Stderr, "The following servers were tried:\n"+lines(list, ""))
	}
	return nil, record{}, false
}

// request collects what a server needs to know (server-client 3.3, 3.4).
func (c *client) request() (*wire.Request, error) {
	s := newServers(c)
	release, arch, _ := strings.Cut(s.kernel, " ")
	if strings.HasPrefix(c.opts.Kernel, "/") {
		k, err := kbuild.FindKernel(c.opts.Kernel)
		if err != nil {
			return nil, fmt.Errorf("ERROR: %w", err)
		}
		release = k.Release
	}
	r := &wire.Request{Version: wire.Version, Release: release, Arch: arch, HasLocale: true, MOK: c.kernel.fingerprints}
	for _, name := range wire.LocaleNames {
		if v, ok := c.inv.LookupEnv(name); ok && !strings.ContainsAny(v, "\n\x00") {
			r.Locale = append(r.Locale, name+"="+v)
		}
	}
	if c.opts.File != "" {
		name, err := c.scriptMember(r)
		if err != nil {
			return nil, err
		}
		r.Args = append(r.Args, name)
	}
	for _, dir := range c.opts.Tapsets {
		name, err := c.tapsetMembers(r, dir)
		if err != nil {
			return nil, err
		}
		r.Args = append(r.Args, "-I", name)
	}
	for _, f := range c.opts.Forward {
		if !strings.HasPrefix(f, "-r/") {
			r.Args = append(r.Args, f)
		}
	}
	if len(c.opts.Args) > 0 {
		r.Args = append(append(r.Args, "--"), c.opts.Args...)
	}
	return r, nil
}

// scriptMember adds the script file to the request, under its real name. One
// that cannot be read is only named: the translator says that it is missing.
func (c *client) scriptMember(r *wire.Request) (string, error) {
	if c.opts.File == "-" {
		src, err := c.source()
		if err != nil {
			return "", err
		}
		r.Files = append(r.Files, wire.File{Name: "script/-", Data: src.Text})
		return "script/-", nil
	}
	path := c.path(c.opts.File)
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "script" + filepath.Clean(path), nil
	}
	if real == "/" {
		return "", errors.New("Unable to send / to the server")
	}
	text, err := readScript(real)
	if err != nil {
		return "", fmt.Errorf("ERROR: reading the script: %w", err)
	}
	r.Files = append(r.Files, wire.File{Name: "script" + real, Data: text})
	return "script" + real, nil
}

// Limits on what one request takes from -I directories; a server has its own.
const (
	maxTapsetFiles = 1500
	maxTapsetBytes = 16 << 20
)

// tapsetMembers adds the library files of an -I directory to the request, below
// its real name. Links are followed; what is no library file, or is one for
// another kernel, is not sent: servers take little.
func (c *client) tapsetMembers(r *wire.Request, dir string) (string, error) {
	path := c.path(dir)
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "tapset" + filepath.Clean(path), nil
	}
	if real == "/" {
		if filepath.Clean(path) != "/" {
			c.say("%s resolves to %s", dir, real)
		}
		return "", errors.New("Unable to send / to the server")
	}
	member := "tapset" + real
	scripts, macros, err := tapset.Directory(member, real, r.Release, r.Arch)
	if err != nil {
		return "", fmt.Errorf("ERROR: %w", err)
	}
	sent, count, size := map[string]bool{}, 0, 0
	for _, f := range r.Files {
		sent[f.Name] = true
		if strings.HasPrefix(f.Name, "tapset/") {
			count, size = count+1, size+len(f.Data)
		}
	}
	for _, t := range append(scripts, macros...) {
		if sent[t.Name] {
			continue
		}
		if count, size = count+1, size+len(t.Text); count > maxTapsetFiles || size > maxTapsetBytes {
			return "", fmt.Errorf("ERROR: -I %s holds more than a request can: %d library files, %d bytes", dir, maxTapsetFiles, maxTapsetBytes)
		}
		r.Files = append(r.Files, wire.File{Name: t.Name, Data: []byte(t.Text)})
	}
	return member, nil
}

// isModuleName accepts [A-Za-z0-9_]{1,60}: a file name and a module name that
// mean nothing else to anybody.
func isModuleName(s string) bool {
	return len(s) > 0 && len(s) <= 60 && strings.IndexFunc(s, func(r rune) bool {
		return !(r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9')
	}) < 0
}

// response takes a server's answer apart, in the order of server-client 3.6.
func (c *client) response(answer []byte) (outcome, error) {
	out := outcome{rc: 1, server: true}
	r, err := wire.DecodeResponse(answer)
	if err != nil {
		return out, fmt.Errorf("Unable to unpack the server response: %w", err)
	}
	if wire.CompareVersions(r.Version, "1.6") < 0 {
		c.say("Server protocol version is %s", r.Version)
		c.say("The server does not use localization information passed by the client")
	}
	out.rc = r.RC
	modules, signatures := r.Modules()
	if c.opts.LastPass >= 4 && r.HasRC && r.RC == 0 {
		if len(modules) == 1 {
			out.name = strings.TrimSuffix(modules[0].Name, ".ko")
		}
		switch {
		case len(modules) == 0:
			defer c.say("No module was returned by the server.")
			out.rc = 1
		case len(modules) > 1:
			return outcome{rc: 1, server: true}, errors.New("Incorrect number of modules in server response")
		case !isModuleName(out.name):
			return outcome{rc: 1, server: true}, fmt.Errorf("The server returned a module of the name %.100q.", modules[0].Name)
		case c.opts.Module != "" && out.name != c.opts.Module:
			return outcome{rc: 1, server: true}, fmt.Errorf("The server returned the module %q instead of %q.", out.name, c.opts.Module)
		case c.opts.Unprivileged() && signatures[0].Data == nil:
			return outcome{rc: 1, server: true}, fmt.Errorf("The server returned the module %q without a signature.", out.name)
		default:
			if err := c.checkKernelSignature(out.name, modules[0].Data); err != nil {
				return outcome{rc: 1, server: true}, err
			}
			// The two must lie side by side: staprun looks for the signature
			// beside the module.
			out.module = filepath.Join(c.temp, modules[0].Name)
			if err := ownfile.WriteNew(out.module, modules[0].Data, 0o600); err != nil {
				return out, fmt.Errorf("ERROR: writing the module: %w", err)
			}
			if signatures[0].Data != nil {
				if err := ownfile.WriteNew(out.module+".sgn", signatures[0].Data, 0o600); err != nil {
					return out, fmt.Errorf("ERROR: writing the signature: %w", err)
				}
			}
		}
	}
	show(c.inv.Stdout, withoutModules(r.Stdout))
	if wire.CompareVersions(r.Version, "1.6") < 0 {
		r.Stderr = withoutLines(r.Stderr, func(line []byte) bool { return bytes.HasPrefix(line, []byte("Keeping temporary directory")) })
	}
	show(c.inv.Stderr, r.Stderr)
	if r.SigningKey != nil {
		c.saveSigningKey(r.SigningKey)
	}
	if !r.HasRC {
		return outcome{rc: 1, server: true}, errors.New("The server refused the request without giving a status; it may not build for this kernel.")
	}
	return out, nil
}

// show writes what a server said. A terminal does what control characters tell
// it, and a server has no orders to give there: they become question marks. A
// file or a pipe gets all octets as they are.
func show(w io.Writer, text []byte) {
	if report.IsTerminal(w) {
		text = printable(text)
	}
	w.Write(text)
}

// printable replaces control characters but line end and tab, those of 8 bits
// (0x80 to 0x9f, by themselves or in UTF-8) too.
func printable(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		if r == utf8.RuneError && n == 1 {
			r = rune(text[0])
		}
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			out = append(out, '?')
		} else {
			out = append(out, text[:n]...)
		}
		text = text[n:]
	}
	return out
}

// withoutModules drops the lines in which a translator names its module.
func withoutModules(text []byte) []byte {
	return withoutLines(text, func(line []byte) bool { return bytes.HasSuffix(line, []byte(".ko")) })
}

func withoutLines(text []byte, drop func(line []byte) bool) []byte {
	var out []byte
	for _, line := range bytes.SplitAfter(text, []byte("\n")) {
		if !drop(bytes.TrimSuffix(line, []byte("\n"))) {
			out = append(out, line...)
		}
	}
	return out
}
