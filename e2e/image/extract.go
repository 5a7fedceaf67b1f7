package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Extract checks an archive as a container engine does (layout, media types,
// digests, sizes, diff ids) and makes the root directory of the image. Owners are
// set when root does it.
func Extract(file, dir string) (Process, error) {
	f, err := os.Open(file)
	if err != nil {
		return Process{}, err
	}
	defer f.Close()
	files := map[string][]byte{}
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Process{}, fmt.Errorf("reading %q: %w", file, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if files[h.Name], err = io.ReadAll(t); err != nil {
			return Process{}, err
		}
	}
	if got := string(files["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
		return Process{}, fmt.Errorf("oci-layout is %q", got)
	}
	var top index
	if err := strict(files["index.json"], &top); err != nil {
		return Process{}, fmt.Errorf("reading index.json: %w", err)
	}
	if top.SchemaVersion != 2 || top.MediaType != typeIndex || len(top.Manifests) != 1 {
		return Process{}, fmt.Errorf("index.json is of %q and has %d manifests", top.MediaType, len(top.Manifests))
	}
	unused := maps.Clone(files)
	delete(unused, "oci-layout")
	delete(unused, "index.json")
	blob := func(d descriptor, mediaType string) ([]byte, error) {
		name := "blobs/" + strings.ReplaceAll(d.Digest, ":", "/")
		b, found := files[name]
		delete(unused, name)
		switch {
		case !found:
			return nil, fmt.Errorf("%q is missing", name)
		case d.MediaType != mediaType:
			return nil, fmt.Errorf("%q is %q, not %q", name, d.MediaType, mediaType)
		case int64(len(b)) != d.Size || sum(b) != d.Digest:
			return nil, fmt.Errorf("%q has not the size or the digest it should have", name)
		}
		return b, nil
	}
	var m manifest
	b, err := blob(top.Manifests[0], typeManifest)
	if err == nil {
		err = strict(b, &m)
	}
	if err != nil {
		return Process{}, fmt.Errorf("reading the manifest: %w", err)
	}
	var c configuration
	if b, err = blob(m.Config, typeConfig); err == nil {
		err = strict(b, &c)
	}
	if err != nil {
		return Process{}, fmt.Errorf("reading the configuration: %w", err)
	}
	if m.SchemaVersion != 2 || m.MediaType != typeManifest || c.OS != "linux" || c.Architecture != "amd64" || c.RootFS.Type != "layers" ||
		len(c.RootFS.DiffIDs) != len(m.Layers) || len(c.Past) != len(m.Layers) {
		return Process{}, fmt.Errorf("manifest and configuration do not fit: %+v, %+v", m, c)
	}
	for i, d := range m.Layers {
		b, err := blob(d, typeLayer)
		if err == nil {
			b, err = unzip(b)
		}
		if err == nil && sum(b) != c.RootFS.DiffIDs[i] {
			err = errors.New("it has another diff id")
		}
		if err == nil {
			err = unpack(b, dir)
		}
		if err != nil {
			return Process{}, fmt.Errorf("unpacking layer %d: %w", i, err)
		}
	}
	if len(unused) > 0 {
		return Process{}, fmt.Errorf("nothing refers to %q", slices.Sorted(maps.Keys(unused)))
	}
	return c.Config, nil
}

func sum(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

func unzip(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// unpack makes what a layer has. What is there of a lower layer is replaced, but
// directories stay.
func unpack(b []byte, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for t := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			if err := root.Mkdir(name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		case tar.TypeSymlink:
			if err := root.Symlink(h.Linkname, name); err != nil {
				return err
			}
		case tar.TypeReg:
			b, err := io.ReadAll(t)
			if err != nil {
				return err
			}
			if err := root.WriteFile(name, b, 0o600); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%q is of type %q", h.Name, h.Typeflag)
		}
		if os.Geteuid() == 0 {
			if err := root.Lchown(name, h.Uid, h.Gid); err != nil {
				return err
			}
		}
		if h.Typeflag != tar.TypeSymlink {
			if err := root.Chmod(name, h.FileInfo().Mode()); err != nil {
				return err
			}
		}
	}
}
