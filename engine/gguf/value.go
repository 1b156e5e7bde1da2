// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
)

// ValueType is the type of a metadata value as GGUF numbers it.
type ValueType uint32

// The value types of GGUF.
const (
	TypeUint8   ValueType = 0
	TypeInt8    ValueType = 1
	TypeUint16  ValueType = 2
	TypeInt16   ValueType = 3
	TypeUint32  ValueType = 4
	TypeInt32   ValueType = 5
	TypeFloat32 ValueType = 6
	TypeBool    ValueType = 7
	TypeString  ValueType = 8
	TypeArray   ValueType = 9
	TypeUint64  ValueType = 10
	TypeInt64   ValueType = 11
	TypeFloat64 ValueType = 12
)

var valueTypeNames = [...]string{"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32",
	"bool", "string", "array", "uint64", "int64", "float64"}

// String returns the type's name.
func (t ValueType) String() string {
	if int(t) < len(valueTypeNames) {
		return valueTypeNames[t]
	}
	return fmt.Sprintf("ValueType(%d)", uint32(t))
}

// size returns the stored bytes of a scalar; strings and arrays, which vary, have 0.
func (t ValueType) size() int {
	switch t {
	case TypeUint8, TypeInt8, TypeBool:
		return 1
	case TypeUint16, TypeInt16:
		return 2
	case TypeUint32, TypeInt32, TypeFloat32:
		return 4
	case TypeUint64, TypeInt64, TypeFloat64:
		return 8
	}
	return 0
}

// minStored is the least a value of this type takes in a file. A reader bounds what it allocates
// for a count by it: n values cannot stand in fewer than n * minStored bytes.
func (t ValueType) minStored() int64 {
	switch t {
	case TypeString:
		return 8 // its length
	case TypeArray:
		return 12 // element type and count
	}
	return int64(t.size())
}

// Value is one metadata value. The zero Value is of no use; values come from a File.
type Value struct {
	Type   ValueType
	Elem   ValueType // element type of an array
	raw    []byte    // scalars and arrays of scalars, little-endian
	strs   []string  // a string (one), or an array of strings
	nested []Value   // an array of arrays
}

// Len returns the number of elements of an array, 1 for anything else.
func (v Value) Len() int {
	switch {
	case v.Type != TypeArray:
		return 1
	case v.Elem == TypeString:
		return len(v.strs)
	case v.Elem == TypeArray:
		return len(v.nested)
	case v.Elem.size() == 0:
		return 0
	}
	return len(v.raw) / v.Elem.size()
}

// Str returns a string value; ok is false for other types.
func (v Value) Str() (s string, ok bool) {
	if v.Type != TypeString || len(v.strs) != 1 {
		return "", false
	}
	return v.strs[0], true
}

// Strings returns an array of strings, sharing memory; ok is false for other types.
func (v Value) Strings() (s []string, ok bool) {
	return v.strs, v.Type == TypeArray && v.Elem == TypeString
}

// Bool returns a bool value; ok is false for other types.
func (v Value) Bool() (b, ok bool) {
	if v.Type != TypeBool || len(v.raw) != 1 {
		return false, false
	}
	return v.raw[0] != 0, true
}

// Int returns an integer value of any width that fits an int64; ok is false otherwise.
func (v Value) Int() (n int64, ok bool) {
	if v.Type == TypeArray {
		return 0, false
	}
	return intAt(v.Type, v.raw)
}

// Float returns a float or integer value as float64; ok is false for other types.
func (v Value) Float() (f float64, ok bool) {
	if v.Type == TypeArray {
		return 0, false
	}
	return floatAt(v.Type, v.raw)
}

// Ints returns an array of integers that fit int64; ok is false for other types.
func (v Value) Ints() (n []int64, ok bool) {
	w := v.Elem.size()
	if v.Type != TypeArray || w == 0 {
		return nil, false
	}
	n = make([]int64, len(v.raw)/w)
	for i := range n {
		if n[i], ok = intAt(v.Elem, v.raw[i*w:]); !ok {
			return nil, false
		}
	}
	return n, true
}

// Floats returns an array of floats or integers; ok is false for other types.
func (v Value) Floats() (f []float64, ok bool) {
	w := v.Elem.size()
	if v.Type != TypeArray || w == 0 {
		return nil, false
	}
	f = make([]float64, len(v.raw)/w)
	for i := range f {
		if f[i], ok = floatAt(v.Elem, v.raw[i*w:]); !ok {
			return nil, false
		}
	}
	return f, true
}

// Bools returns an array of bools, or of integers, of which 0 is false; ok is false for other types.
func (v Value) Bools() (b []bool, ok bool) {
	if v.Type == TypeArray && v.Elem == TypeBool {
		for _, x := range v.raw {
			b = append(b, x != 0)
		}
		return b, true
	}
	n, ok := v.Ints()
	for _, x := range n {
		b = append(b, x != 0)
	}
	return b, ok
}

func intAt(t ValueType, b []byte) (int64, bool) {
	if t.size() == 0 || len(b) < t.size() {
		return 0, false
	}
	switch t {
	case TypeUint8:
		return int64(b[0]), true
	case TypeInt8:
		return int64(int8(b[0])), true
	case TypeUint16:
		return int64(binary.LittleEndian.Uint16(b)), true
	case TypeInt16:
		return int64(int16(binary.LittleEndian.Uint16(b))), true
	case TypeUint32:
		return int64(binary.LittleEndian.Uint32(b)), true
	case TypeInt32:
		return int64(int32(binary.LittleEndian.Uint32(b))), true
	case TypeUint64:
		u := binary.LittleEndian.Uint64(b)
		return int64(u), u <= math.MaxInt64
	case TypeInt64:
		return int64(binary.LittleEndian.Uint64(b)), true
	}
	return 0, false
}

func floatAt(t ValueType, b []byte) (float64, bool) {
	if t.size() == 0 || len(b) < t.size() {
		return 0, false
	}
	switch t {
	case TypeFloat32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b))), true
	case TypeFloat64:
		return math.Float64frombits(binary.LittleEndian.Uint64(b)), true
	case TypeBool:
		return 0, false
	}
	n, ok := intAt(t, b)
	return float64(n), ok
}

// IsZero reports whether a value says "none": 0, false, an empty string or array.
func (v Value) IsZero() bool {
	if v.Type == TypeArray {
		return v.Len() == 0
	}
	if s, ok := v.Str(); ok {
		return s == ""
	}
	for _, b := range v.raw {
		if b != 0 {
			return false
		}
	}
	return true
}

// String renders scalars and strings; arrays as type and length.
func (v Value) String() string {
	if s, ok := v.Str(); ok {
		return fmt.Sprintf("%q", s)
	}
	if b, ok := v.Bool(); ok {
		return fmt.Sprint(b)
	}
	if v.Type == TypeFloat32 || v.Type == TypeFloat64 {
		f, _ := v.Float()
		return fmt.Sprint(f)
	}
	if n, ok := v.Int(); ok {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s of %d %s", v.Type, v.Len(), v.Elem)
}
