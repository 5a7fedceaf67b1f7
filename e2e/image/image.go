// Package image builds images for containers, without a container engine: one
// tar file each, in the layout of the OCI image format specification 1.1.
//
//	oci-layout                  {"imageLayoutVersion": "1.0.0"}
//	index.json                  names the manifest
//	blobs/sha256/HEX            manifest, configuration, layers (tar in gzip)
//
// There are two. The client's has one layer: the one file, a link for each
// applet, accounts and the directories of an installation. The server's has
// the same layer, below one with compiler, linker, make and a shell, from packages
// of Debian that are unpacked without running anything of them; what building
// modules does not need is left out.
//
// The same input gives the same bytes: entries are sorted, times are 0, owners
// are numbers.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"stapbox/core/version"
)

// Media types of the specification.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// UID is the user of both images, and his group.
const UID = 65532

// Home is where a server keeps key, cache and prepared kernels.
const Home = "/var/lib/stap-server"

// Port is the one a server listens on.
const Port = "4321"

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type configuration struct {
	platform
	Config Process   `json:"config"`
	RootFS rootFS    `json:"rootfs"`
	Past   []history `json:"history"`
}

// Process is how a container is started and what is said about its image.
type Process struct {
	User         string              `json:"User"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env"`
	Entrypoint   []string            `json:"Entrypoint"`
	Cmd          []string            `json:"Cmd"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir"`
	Labels       map[string]string   `json:"Labels"`
	StopSignal   string              `json:"StopSignal,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type history struct {
	CreatedBy string `json:"created_by"`
}

// Image is what one is made of.
type Image struct {
	Name      string   // client or server
	Box       string   // the one file
	Applets   []string // names that it answers to
	Toolchain string   // of a server: the directory with the unpacked packages
}

// layers are those of the image, lowest first, and what made each.
func (im Image) layers() ([]layer, []history, error) {
	own := im.own()
	if im.Toolchain == "" {
		return []layer{own}, []history{{"stapbox"}}, nil
	}
	tools, err := toolchain(im.Toolchain)
	if err != nil {
		return nil, nil, err
	}
	return []layer{tools, own}, []history{{"packages: " + strings.Join(Packages(), " ")}, {"stapbox"}}, nil
}

// own is the layer of both images. It is laid out as stapbox install --no-setuid
// does.
func (im Image) own() layer {
	const box = "usr/libexec/stapbox/stapbox"
	l := layer{{name: box, mode: 0o755, file: im.Box}}
	l.symlink("usr/libexec/stapbox/stapio", "stapbox")
	for _, name := range append([]string{"stapbox"}, im.Applets...) {
		if name != "stapio" {
			l.symlink("usr/bin/"+name, "../libexec/stapbox/stapbox")
		}
	}
	for _, d := range merged {
		l.symlink(d, "usr/"+d)
	}
	for _, d := range []string{
		"dev", "proc", "sys", "run", "usr/lib/modules", "usr/lib64", "usr/sbin", "usr/src", "etc/stapbox", "etc/systemtap/ssl/client", "etc/systemtap/staprun",
	} {
		l.dir(d, 0o755, 0)
	}
	l = append(l, entry{name: "tmp", mode: 0o777 | os.ModeSticky | os.ModeDir})
	l.dir(strings.TrimPrefix(Home, "/"), 0o700, UID)
	l.text("etc/passwd", fmt.Sprintf("root:x:0:0:root:/root:/bin/sh\nstap-server:x:%d:%[1]d:compile server:%s:/bin/sh\n", UID, Home))
	l.text("etc/group", fmt.Sprintf("root:x:0:\nstapusr:x:156:\nstapsys:x:157:\nstapdev:x:158:\nstap-server:x:%d:\n", UID))
	return l
}

func (im Image) process() Process {
	p := Process{
		User:       fmt.Sprintf("%d:%[1]d", UID),
		Env:        []string{"PATH=/usr/bin:/usr/sbin", "HOME=" + Home, "SYSTEMTAP_DIR=" + Home},
		Entrypoint: []string{"/usr/bin/stapbox"}, Cmd: []string{"--help"}, WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":       "stapbox " + im.Name,
			"org.opencontainers.image.version":     version.Version,
			"org.opencontainers.image.licenses":    "MIT",
			"org.opencontainers.image.description": "every program of the SystemTap compile-server world in one file",
		},
	}
	if im.Toolchain != "" {
		p.Entrypoint, p.Cmd = []string{"/usr/bin/stapbox", "entrypoint"}, []string{"--port=" + Port}
		p.ExposedPorts = map[string]struct{}{Port + "/tcp": {}}
		p.Volumes = map[string]struct{}{Home: {}}
		p.StopSignal = "SIGTERM"
		p.Labels["org.opencontainers.image.licenses"] = "MIT AND GPL-3.0-or-later AND GPL-2.0-only AND LGPL-2.1-or-later"
	}
	return p
}

// Write writes the archive to a file.
func (im Image) Write(file string) error {
	work, err := os.MkdirTemp(filepath.Dir(file), ".image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	layers, past, err := im.layers()
	if err != nil {
		return err
	}
	c := configuration{platform: platform{"amd64", "linux"}, Config: im.process(), RootFS: rootFS{Type: "layers"}, Past: past}
	m := manifest{SchemaVersion: 2, MediaType: typeManifest}
	b := blobs{dir: work}
	for _, l := range layers {
		var diff string
		d, err := b.add(typeLayer, func(w io.Writer) (err error) {
			diff, err = l.write(w)
			return err
		})
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, diff)
	}
	if m.Config, err = b.json(typeConfig, c); err != nil {
		return err
	}
	top, err := b.json(typeManifest, m)
	if err != nil {
		return err
	}
	top.Platform = &c.platform
	top.Annotations = map[string]string{"org.opencontainers.image.ref.name": "stapbox-" + im.Name + ":" + version.Version}
	return b.archive(file, index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{top}})
}

// blobs are files that are named for their digests.
type blobs struct {
	dir   string
	names []string
}

func (b *blobs) add(mediaType string, write func(io.Writer) error) (descriptor, error) {
	f, err := os.CreateTemp(b.dir, "")
	if err != nil {
		return descriptor{}, err
	}
	defer f.Close()
	sum := sha256.New()
	if err := write(io.MultiWriter(f, sum)); err != nil {
		return descriptor{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return descriptor{}, err
	}
	name := fmt.Sprintf("%x", sum.Sum(nil))
	if !slices.Contains(b.names, name) {
		b.names = append(b.names, name)
	}
	return descriptor{MediaType: mediaType, Digest: digest(sum), Size: st.Size()}, os.Rename(f.Name(), filepath.Join(b.dir, name))
}

func (b *blobs) json(mediaType string, v any) (descriptor, error) {
	return b.add(mediaType, func(w io.Writer) error { return json.NewEncoder(w).Encode(v) })
}

// archive writes the tar file, all or nothing.
func (b *blobs) archive(file string, top index) error {
	var first bytes.Buffer
	if err := json.NewEncoder(&first).Encode(top); err != nil {
		return err
	}
	l := layer{}
	l.dir("blobs", 0o755, 0)
	l.dir("blobs/sha256", 0o755, 0)
	slices.Sort(b.names)
	for _, n := range b.names {
		l = append(l, entry{name: "blobs/sha256/" + n, mode: 0o644, file: filepath.Join(b.dir, n)})
	}
	l.text("index.json", first.String())
	l.text("oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
	f, err := os.CreateTemp(b.dir, "")
	if err != nil {
		return err
	}
	defer f.Close()
	t := tar.NewWriter(f)
	for _, e := range l {
		if err := e.write(t); err != nil {
			return fmt.Errorf("writing %q: %w", e.name, err)
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
