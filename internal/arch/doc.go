// Package arch checks what a compiler does not: that imports point down, that a
// heavy dependency has one importer, that programs stay small, that code and
// documents keep the house rules.
//
// tables.go says what holds and which exceptions there are, with their reasons;
// changing the shape of the system is changing a line there. The checks are
// pure functions from the module's source to a list of what is wrong; the tests
// run each over this module, and over small broken ones to show that it fails.
// An exception that nothing needs any more fails too.
//
// Nothing imports arch. It judges no behaviour and measures no time.
package arch
