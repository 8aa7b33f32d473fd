package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/test/machine"
)

const (
	pullLayers  = 12
	pullSize    = 1 << 30 // bytes of the image's files
	pullRuns    = 3
	pullName    = "bench/large:v1"
	maxFileSize = 8 << 20
)

// pulls measures pulling and unpacking a large image from a registry on
// loopback, which is this process, for both engines the same files.
func (b *bench) pulls(m *machine.Machine, docker *dockerd) (err error) {
	image, err := makeImage(filepath.Join(m.Dir, "large"))
	if err != nil {
		return err
	}
	defer func() {
		if removeErr := os.RemoveAll(image.dir); err == nil {
			err = removeErr
		}
	}()
	ours, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	theirs, err := listenIn(docker.cmd.Process.Pid)
	if err != nil {
		return errors.Join(err, ours.Close())
	}
	server := &http.Server{Handler: image, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 2)
	for _, l := range []net.Listener{ours, theirs} {
		go func() { served <- server.Serve(l) }()
	}
	defer func() {
		err = errors.Join(err, server.Close())
		for range 2 {
			if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
				err = errors.Join(err, ended)
			}
		}
	}()
	var mine, peer durations
	for range pullRuns {
		name := ours.Addr().String() + "/" + pullName
		took, err := timed(func() error { _, err := m.Run("ferry", "pull", name); return err })
		if err != nil {
			return err
		}
		mine = append(mine, took)
		if _, err := m.Run("docker", "rmi", name); err != nil {
			return err
		}
		if err := image.goneFrom(filepath.Join(m.DataDir, "images")); err != nil {
			return err
		}
		name = theirs.Addr().String() + "/" + pullName
		took, err = timed(docker.command("pull", name).Run)
		if err != nil {
			return fmt.Errorf("docker pull: %w", err)
		}
		peer = append(peer, took)
		if out, err := docker.command("rmi", name).CombinedOutput(); err != nil {
			return fmt.Errorf("docker rmi: %w: %s", err, out)
		}
	}
	b.add("pull and unpack an image of 1 GB in 12 layers, registry on loopback", "≤ 0.6 × docker", mine.String(),
		fmt.Sprintf("docker: %s, ratio %.2f", peer, mine.median().Seconds()/peer.median().Seconds()))
	return nil
}

// listenIn listens on loopback in a process's network namespace.
func listenIn(pid int) (net.Listener, error) {
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err == nil {
			err = errors.Join(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET), ns.Close())
		}
		if err != nil {
			done <- result{nil, err}
			return
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		done <- result{l, err}
	}()
	r := <-done
	return r.l, r.err
}

// largeImage is an image in a directory, served as a registry does.
type largeImage struct {
	dir      string
	manifest []byte
	layers   []string // digests, which are the files' names
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

const (
	manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	configType   = "application/vnd.docker.container.image.v1+json"
	layerType    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// makeImage makes an image of files as packages have them: many small ones, a
// few large, of data that halves when compressed. It is the same every time.
func makeImage(dir string) (*largeImage, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	image := &largeImage{dir: dir}
	random := rand.NewChaCha8([32]byte{'f', 'e', 'r', 'r', 'y'})
	var layers []descriptor
	var diffs []string
	for i := range pullLayers {
		layer, diff, err := image.makeLayer(random, i)
		if err != nil {
			return nil, err
		}
		layers, diffs = append(layers, layer), append(diffs, diff)
		image.layers = append(image.layers, layer.Digest)
	}
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, digestOf(config)), config, 0o644); err != nil {
		return nil, err
	}
	image.manifest, err = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": manifestType,
		"config": descriptor{configType, digestOf(config), int64(len(config))}, "layers": layers})
	return image, err
}

func (l *largeImage) makeLayer(random *rand.ChaCha8, number int) (descriptor, string, error) {
	f, err := os.CreateTemp(l.dir, "layer-")
	if err != nil {
		return descriptor{}, "", err
	}
	defer f.Close()
	packed, plain := sha256.New(), sha256.New()
	zip := gzip.NewWriter(io.MultiWriter(f, packed))
	out := tar.NewWriter(io.MultiWriter(zip, plain))
	buf := make([]byte, maxFileSize)
	for left, i := pullSize/pullLayers, 0; left > 0; i++ {
		size := 1 << (8 + random.Uint64()%12) // 256 B to 512 KB
		if i%100 == 99 {
			size = maxFileSize
		}
		size = min(size, left)
		left -= size
		if err := out.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib%d/%d/file-%d", number, i/50, i), Mode: 0o644, Size: int64(size)}); err != nil {
			return descriptor{}, "", err
		}
		half(random, buf[:size])
		if _, err := out.Write(buf[:size]); err != nil {
			return descriptor{}, "", err
		}
	}
	if err := errors.Join(out.Close(), zip.Close()); err != nil {
		return descriptor{}, "", err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return descriptor{}, "", err
	}
	digest := "sha256:" + hex.EncodeToString(packed.Sum(nil))
	return descriptor{layerType, digest, size}, "sha256:" + hex.EncodeToString(plain.Sum(nil)), os.Rename(f.Name(), filepath.Join(l.dir, digest))
}

// words are what is redundant in the image's files.
var words = bytes.Repeat([]byte("the same words again and again, "), 2)

// half fills p with bytes half of which are random.
func half(random *rand.ChaCha8, p []byte) {
	_, _ = random.Read(p) // never fails
	for i := 0; i < len(p); i += 2 * len(words) {
		copy(p[i:], words)
	}
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ServeHTTP is as much of the registry protocol as pulling takes.
func (l *largeImage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" {
		return
	}
	if strings.Contains(r.URL.Path, "/manifests/") {
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", digestOf(l.manifest))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(l.manifest))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeFile(w, r, filepath.Join(l.dir, filepath.Base(r.URL.Path)))
}

// goneFrom waits until a store's directory does not have the image any more.
func (l *largeImage) goneFrom(store string) error {
	for range 600 {
		left := 0
		for _, digest := range l.layers {
			algorithm, hash, _ := strings.Cut(digest, ":")
			if _, err := os.Stat(filepath.Join(store, "content", "blobs", algorithm, hash)); err == nil {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("an image that was removed is still there after a minute")
}
