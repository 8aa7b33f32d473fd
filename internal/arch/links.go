package arch

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	markdownLink = regexp.MustCompile(`\]\(([^)\s]+)[^)]*\)|\b(?:src|href)="([^"]+)"`)
	fenced       = regexp.MustCompile("(?ms)^```.*?^```")
	heading      = regexp.MustCompile(`(?m)^#+ +(.*?) *#*$`)
	notInAnchor  = regexp.MustCompile(`[^\p{L}\p{N}\-_ ]`)
	// document is a path of a document as comments, messages and texts name it; part of a longer path it is another's.
	document = regexp.MustCompile(`(?:^|[^\w/.\-])(docs/[\w./\-]*\w)`)
)

// checkLinks reports links in documents that lead nowhere, and documents that
// are mentioned anywhere, in a comment or a message too, and do not exist.
func checkLinks(root fs.FS) ([]string, error) {
	var out []string
	err := walk(root, func(name string) error {
		if !slices.Contains([]string{".md", ".go", ".sh", ".yaml", ".yml", ""}, path.Ext(name)) {
			return nil
		}
		content, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		text := string(content)
		fail := func(offset int, format string, args ...any) {
			out = append(out, fmt.Sprintf("%s:%d: ", name, 1+strings.Count(text[:offset], "\n"))+fmt.Sprintf(format, args...))
		}
		for _, m := range document.FindAllStringSubmatchIndex(text, -1) {
			if mentioned := text[m[2]:m[3]]; !exists(root, mentioned) {
				fail(m[2], "%s does not exist", mentioned)
			}
		}
		if path.Ext(name) != ".md" {
			return nil
		}
		for _, m := range markdownLink.FindAllStringSubmatchIndex(blank(text), -1) {
			target := text[max(m[2], m[4]):max(m[3], m[5])]
			if problem := deadLink(root, name, target); problem != "" {
				fail(m[0], "%s", problem)
			}
		}
		return nil
	})
	return out, err
}

// blank replaces code blocks, which hold no links, by as many blanks.
func blank(text string) string {
	return fenced.ReplaceAllStringFunc(text, func(s string) string { return strings.Repeat(" ", len(s)) })
}

// deadLink returns what is wrong with a link in a document, "" if nothing is.
func deadLink(root fs.FS, from, link string) string {
	if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
		return ""
	}
	target, anchor, _ := strings.Cut(link, "#")
	at := from
	if target != "" {
		at = path.Join(path.Dir(from), target)
	}
	if !exists(root, at) {
		return fmt.Sprintf("the link %s leads nowhere: %s does not exist", link, at)
	}
	if anchor == "" || path.Ext(at) != ".md" {
		return ""
	}
	text, err := fs.ReadFile(root, at)
	if err != nil {
		return err.Error()
	}
	if !slices.Contains(anchors(string(text)), anchor) {
		return fmt.Sprintf("the link %s leads nowhere: %s has no such heading", link, at)
	}
	return ""
}

// anchors returns the names that a forge gives to a document's headings.
func anchors(text string) []string {
	var list []string
	seen := map[string]int{}
	for _, m := range heading.FindAllStringSubmatch(blank(text), -1) {
		title := markdownLink.ReplaceAllString(m[1], "]") // the text of a link remains
		name := strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
		if n := seen[name]; n > 0 {
			list = append(list, fmt.Sprintf("%s-%d", name, n))
		} else {
			list = append(list, name)
		}
		seen[name]++
	}
	return list
}

func exists(root fs.FS, name string) bool {
	_, err := fs.Stat(root, name)
	return err == nil
}
