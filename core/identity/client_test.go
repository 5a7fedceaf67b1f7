package identity

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/pemutil"
)

func TestLoadClient(t *testing.T) {
	dir := t.TempDir()
	if c, err := LoadClient(dir); c != nil || err != nil {
		t.Errorf("nothing there: %v, %v", c, err)
	}
	id, err := New(Options{NodeName: "vm", KeyType: ECDSA, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	block, err := pemutil.Serialize(id.Key, pemutil.WithPKCS8(true))
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, data []byte, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		os.Remove(path)
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.Certificate.Raw})
	put(ClientCertFile, cert, 0o644)
	if _, err := LoadClient(dir); err == nil {
		t.Error("a certificate without key")
	}
	put(ClientKeyFile, pem.EncodeToMemory(block), 0o600)
	if c, err := LoadClient(dir); err != nil || !c.Leaf.Equal(id.Certificate) {
		t.Errorf("got %v, %v", c, err)
	}
	put(ClientKeyFile, pem.EncodeToMemory(block), 0o644)
	if _, err := LoadClient(dir); err == nil || !strings.Contains(err.Error(), "too open") {
		t.Errorf("got %v", err)
	}
	put(ClientKeyFile, []byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAA==\n-----END RSA PRIVATE KEY-----\n"), 0o600)
	if _, err := LoadClient(dir); err == nil || !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("got %v", err)
	}
	other, _ := New(Options{NodeName: "vm", KeyType: ECDSA, Now: time.Now()})
	block, _ = pemutil.Serialize(other.Key, pemutil.WithPKCS8(true))
	put(ClientKeyFile, pem.EncodeToMemory(block), 0o600)
	if _, err := LoadClient(dir); err == nil || !strings.Contains(err.Error(), "reading the client certificate in") {
		t.Errorf("got %v", err)
	}
}
